"""Whole engines to measure: a checkpoint's, or one of random weights of a published shape."""

from pathlib import Path

import torch
from transformers import AutoTokenizer

from gmsa_rag.benchmark.shapes import build_base, find_shape
from gmsa_rag.errors import ConfigError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.loading import resolve_checkpoint

BUNDLED = "gmsa-mini"


def pick_engine(
    model: str | None, shape: str | None, *, device: str, dtype: torch.dtype, layers: int = 0, seed: int = 0
) -> GMSA:
    """The engine of a checkpoint, or of a shape with the bundled tokenizer.

    Args:
        model: Bundled name, directory or hub id; None with a shape, or for gmsa-mini.
        shape: Name of a shape, or None.
        device: Where.
        dtype: Of all weights.
        layers: Of a shape's encoder; 0 takes the shape's own.
        seed: Of a shape's weights.

    Raises:
        ConfigError: If both are given, the shape is unknown, or it has fewer layers.
        CheckpointError: If there is no such checkpoint.
    """
    if model is not None and shape is not None:
        raise ConfigError("model", expected="--model or --shape", got="both", remedy="Leave one of them out.")
    if shape is None:
        return GMSA.from_pretrained(model or BUNDLED, device=device, dtype=dtype)
    found = find_shape(shape)
    tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint(BUNDLED) / "decoder", local_files_only=True)
    base = build_base(found, device=device, dtype=dtype, seed=seed)
    gmsa = GMSA.from_base(base, tokenizer, encoder_layers=layers or found.encoder_layers, window=found.window)
    gmsa.config.fingerprint = f"random weights {seed} of {shape}"  # nothing to verify, so nothing is digested
    return gmsa


def engine_name(model: str | None, shape: str | None) -> str:
    """What to call it in a report."""
    return shape or Path(model or BUNDLED).name


def widen(gmsa: GMSA, positions: int) -> None:
    """Let a decoder hold so many positions, trained for or not: what it says there does not matter for its speed.

    Args:
        gmsa: An engine that nothing but the benchmark uses.
        positions: Of prompt and answer together.
    """
    config = gmsa.decoder.config
    config.max_position_embeddings = max(int(config.max_position_embeddings), positions)
    gmsa.decoding.window = gmsa.decoder_window

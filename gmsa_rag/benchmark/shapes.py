"""Models to measure: checkpoints, or random weights of a published shape, since speed does not depend on values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from gmsa_rag.errors import ConfigError
from gmsa_rag.inference.loading import resolve_checkpoint
from gmsa_rag.modeling.alignment import LayerSemanticAlignment, backbone_of
from gmsa_rag.modeling.checkpoint import load_checkpoint
from gmsa_rag.modeling.compressor import Compressor

INITIAL_DEVIATION = 0.02

_QWEN3: dict[str, Any] = {
    "family": "qwen3", "vocab_size": 151_936, "head_dim": 128, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40_960, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Dimensions of a published architecture.

    Attributes:
        settings: Of its transformers configuration, with the family's name under "family".
        rope: Its rotary embedding: base and scaling.
        encoder_layers: Layers of the encoder, unless told otherwise.
        window: Longest run of tokens the compressor takes.
    """

    settings: dict[str, Any]
    rope: dict[str, Any]
    encoder_layers: int = 8
    window: int = 512


# From the config.json that each model is published with.
SHAPES = {
    "llama-3.2-3b": Shape(
        {
            "family": "llama", "vocab_size": 128_256, "hidden_size": 3_072, "intermediate_size": 8_192,
            "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072, "tie_word_embeddings": True,
        },
        {
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8_192,
        },
    ),
    "qwen3-4b": Shape(
        _QWEN3 | {
            "hidden_size": 2_560, "intermediate_size": 9_728, "num_hidden_layers": 36, "num_attention_heads": 32,
        },
        {"rope_type": "default", "rope_theta": 1_000_000.0},
    ),
    "qwen3-0.6b": Shape(
        _QWEN3 | {
            "hidden_size": 1_024, "intermediate_size": 3_072, "num_hidden_layers": 28, "num_attention_heads": 16,
        },
        {"rope_type": "default", "rope_theta": 1_000_000.0},
    ),
    "gmsa-mini": Shape(
        {
            "family": "llama", "vocab_size": 9_216, "hidden_size": 576, "intermediate_size": 768,
            "num_hidden_layers": 8, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 4_096, "tie_word_embeddings": True,
        },
        {"rope_type": "default", "rope_theta": 100_000.0},
        encoder_layers=2,
    ),
}  # fmt: skip


def shape_config(shape: Shape, layers: int | None = None) -> PreTrainedConfig:
    """The transformers configuration of a shape.

    Args:
        shape: Its dimensions.
        layers: Keep only so many; None keeps all.

    Raises:
        ConfigError: If the shape has fewer layers.
    """
    settings = dict(shape.settings)
    family, there = settings.pop("family"), settings["num_hidden_layers"]
    if layers is not None and not 1 <= layers <= there:
        raise ConfigError("layers", expected=f"1 to {there}", got=str(layers), remedy="Choose fewer encoder layers.")
    settings["num_hidden_layers"] = layers or there
    return AutoConfig.for_model(family, **settings, rope_parameters=dict(shape.rope))


def build_base(
    shape: Shape, *, device: str | torch.device, dtype: torch.dtype, layers: int | None = None, seed: int = 0
) -> PreTrainedModel:
    """Build a causal LM of a shape with random weights, straight in its dtype and on its device.

    Args:
        shape: Its dimensions.
        device: Where.
        dtype: Of its weights.
        layers: Keep only so many; None keeps all.
        seed: Of the weights. The same seed gives other weights on another device or in another dtype.

    Raises:
        ConfigError: If the shape has fewer layers.
    """
    with torch.device("meta"):  # neither memory nor time goes into transformers' own initialisation
        model = AutoModelForCausalLM.from_config(shape_config(shape, layers), dtype=dtype)
    model.to_empty(device=device)
    model.tie_weights()
    # The only buffers of these families are rotary frequencies, and empty now.
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    _draw_weights(model, seed)
    return cast(PreTrainedModel, model.eval())


def build_compressor(
    shape: Shape, *, device: str | torch.device, dtype: torch.dtype, encoder_layers: int | None = None, seed: int = 0
) -> Compressor:
    """Build a compressor of a shape with random weights and one layer of alignment, and no decoder.

    Args:
        shape: Its dimensions.
        device: Where.
        dtype: Of its weights.
        encoder_layers: Of the encoder; None takes the shape's own.
        seed: Of the weights.

    Raises:
        ConfigError: If the shape has fewer layers.
    """
    encoder, block = (
        backbone_of(build_base(shape, device=device, dtype=dtype, layers=layers, seed=seed + place))
        for place, layers in enumerate((encoder_layers or shape.encoder_layers, 1))
    )
    block.set_input_embeddings(None)
    return Compressor(encoder, LayerSemanticAlignment(block)).eval().requires_grad_(False)


def pick_compressor(
    model: str | None, shape: str | None, *, device: str, dtype: torch.dtype, layers: int = 0, seed: int = 0
) -> tuple[str, Compressor, int]:
    """The compressor of a checkpoint, or of a shape.

    Args:
        model: Bundled name, directory or hub id; None with a shape, or for gmsa-mini.
        shape: Name of a shape, or None.
        device: Where.
        dtype: Of its weights.
        layers: Of a shape's encoder; 0 takes the shape's own.
        seed: Of a shape's weights.

    Returns:
        Its name, the compressor, and its window.

    Raises:
        ConfigError: If both are given, the shape is unknown, or it has fewer layers.
        CheckpointError: If there is no such checkpoint.
    """
    if model is not None and shape is not None:
        raise ConfigError("model", expected="--model or --shape", got="both", remedy="Leave one of them out.")
    if shape is not None:
        found = find_shape(shape)
        built = build_compressor(found, device=device, dtype=dtype, encoder_layers=layers or None, seed=seed)
        return shape, built, found.window
    name = model or "gmsa-mini"
    checkpoint = load_checkpoint(resolve_checkpoint(name), dtype=dtype, device=device)
    return Path(name).name, checkpoint.compressor.requires_grad_(False), checkpoint.config.window


def find_shape(name: str) -> Shape:
    """The shape of a name, or ConfigError."""
    if name not in SHAPES:
        raise ConfigError("shape", expected=", ".join(SHAPES), got=name, remedy="Choose one of these, or a --model.")
    return SHAPES[name]


@torch.no_grad()
def _draw_weights(model: PreTrainedModel, seed: int) -> None:
    """Normal matrices, as these models are initialised; ones for the norms."""
    generator = torch.Generator(model.device).manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(0.0, INITIAL_DEVIATION, generator=generator)
        else:
            weight.fill_(1.0)

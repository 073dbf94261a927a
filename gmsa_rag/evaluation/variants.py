"""Variants of an ablation: which compressor each has, and what its decoder learns from."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.baselines import ClosedBookObjective, FullTextObjective, TruncatedText
from gmsa_rag.evaluation.icae import ICAECompressor
from gmsa_rag.modeling.alignment import LayerSemanticAlignment, first_layers
from gmsa_rag.modeling.checkpoint import Checkpoint
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.modeling.files import load_decoder
from gmsa_rag.modeling.group_merging import num_groups
from gmsa_rag.training.autoencoding import make_config
from gmsa_rag.training.objective import Objective
from gmsa_rag.training.recipe import AutoencodeRecipe

COMPRESSING = ("default", "without_ae", "without_lsa", "random_lsa", "icae")
READING = ("full_text", "truncated_text", "closed_book")
VARIANTS = (*COMPRESSING, *READING)
AUTOENCODED = ("default", "without_lsa", "random_lsa", "icae")


def check_variants(variants: tuple[str, ...]) -> None:
    """Raise InputError unless there are variants and all of them are known."""
    if not variants or (unknown := sorted(set(variants) - set(VARIANTS))):
        raise InputError(
            "variants", expected=f"some of {', '.join(VARIANTS)}", got=str(unknown if variants else []),
            remedy="Choose among them.",
        )  # fmt: skip


def start_variant(variant: str, base: Path, recipe: AutoencodeRecipe, rates: tuple[int, ...], seed: int) -> Checkpoint:
    """A variant before any training.

    Args:
        variant: One of `VARIANTS`.
        base: Directory of the base.
        recipe: Its layers, window and templates.
        rates: All that will be compressed at, in training and evaluation.
        seed: Of what is initialised at random.

    Returns:
        The base as decoder, with the variant's compressor; `TruncatedText` for a reader of text.
    """
    decoder, tokenizer = load_decoder(base, torch.float32)
    config = make_config(recipe, decoder, rates)
    set_seed(seed)
    compressor = make_compressor(variant, decoder, config)
    return Checkpoint(config, cast(Compressor, compressor), decoder.eval(), tokenizer)


def make_compressor(variant: str, decoder: PreTrainedModel, config: GMSAConfig) -> nn.Module:
    """A variant's compressor, initialised from the base and, where it says so, from torch's random state."""
    if variant in READING:
        return TruncatedText(decoder)
    if variant == "icae":
        return ICAECompressor.from_base(decoder, config, num_groups(config.window, min(config.rates or [1])))
    if variant == "without_lsa":
        encoder = first_layers(decoder, config.encoder_layers, norm=config.encoder_norm, embeddings=True)
        return Compressor(encoder, cast(LayerSemanticAlignment, nn.Identity()))
    compressor = Compressor.from_base(decoder, config)
    if variant == "random_lsa":
        draw_weights(compressor.alignment.block)
    return compressor


def draw_weights(block: PreTrainedModel) -> None:
    """Put weights drawn as for a new model in the place of a backbone's layers and norm."""
    fresh: Any = type(block)(block.config)
    fresh.set_input_embeddings(None)
    fresh.norm = type(block.norm)() if isinstance(block.norm, nn.Identity) else fresh.norm
    block.load_state_dict(fresh.state_dict())


def make_objective(variant: str, checkpoint: Checkpoint, *, bf16: bool) -> Objective:
    """What a variant's decoder learns from in KEFT."""
    if variant == "full_text":
        return FullTextObjective(checkpoint.decoder, bf16=bf16)
    if variant == "closed_book":
        return ClosedBookObjective(checkpoint.decoder, bf16=bf16)
    return Objective(checkpoint.decoder, checkpoint.compressor, bf16=bf16)

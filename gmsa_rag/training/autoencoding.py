"""Stage 1, autoencoding (AE): the compressor learns to keep, the decoder to read, what a passage says."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import ConfigError
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.modeling.adapters import save_adapters
from gmsa_rag.modeling.checkpoint import Checkpoint, load_checkpoint, read_config, save_checkpoint
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.modeling.files import is_checkpoint, load_base
from gmsa_rag.modeling.lora import add_lora, merge_lora
from gmsa_rag.training.data import find_files, token_stream
from gmsa_rag.training.examples import Example
from gmsa_rag.training.loop import Run
from gmsa_rag.training.objective import Objective
from gmsa_rag.training.pretraining import TEXT_SUFFIXES
from gmsa_rag.training.recipe import AutoencodeRecipe
from gmsa_rag.training.recipe_file import keep_recipe
from gmsa_rag.training.tasks import Tasks


def autoencode(
    recipe: AutoencodeRecipe, base: str | Path, data: Path, out: Path, device: str = "cpu", *,
    revision: str | None = None,
) -> Path:  # fmt: skip
    """Make a GMSA checkpoint of a base; resumes where an earlier run in `out` stopped.

    Args:
        recipe: The stage's settings.
        base: Directory or hub id of a causal LM, or directory of a GMSA checkpoint to go on from.
        data: Directory of the training data.
        out: Directory of the run.
        device: Where to train.
        revision: Of a hub id.

    Returns:
        Directory of the checkpoint.

    Raises:
        ConfigError: If a checkpoint to go on from has other layers or another window than the recipe.
        CheckpointError: If the base cannot be read or lacks weights, or the run in `out` was started with another
            recipe or base.

    Source: GMSA, arXiv 2505.12215, "Autoencoder Training"; there the decoder is frozen.
    """
    files = find_files(data, recipe.text, "text", TEXT_SUFFIXES)
    start = _start(recipe, base, revision)
    keep_recipe(recipe, out)
    codec = TokenCodec(start.tokenizer)
    stream = token_stream(files, codec, codec.end, out.parent)

    def make(phase: int) -> Callable[[random.Random], Example]:
        return draw_restorations(recipe, phase, codec, start.config, stream)

    settings = recipe.optimisation
    set_seed(settings.seed)  # LoRA starts from random weights
    trainable = _trainable(recipe, start)
    objective = Objective(start.decoder, start.compressor, bf16=settings.bf16, cross_entropy=settings.cross_entropy)
    run = Run(out, settings, objective, trainable, window=recipe.window, phases=recipe.phases, device=device)
    run.train(make)
    if run.gather():
        _save(recipe, start, str(base), revision, out / "checkpoint")
    return out / "checkpoint"


def make_config(recipe: AutoencodeRecipe, decoder: PreTrainedModel, rates: Iterable[int]) -> GMSAConfig:
    """Settings of a new checkpoint of a base that serves these rates."""
    return GMSAConfig(
        encoder_layers=recipe.encoder_layers, lsa_layers=recipe.lsa_layers, hidden_size=decoder.config.hidden_size,
        window=recipe.window, rates=sorted(set(rates)), **recipe.templates,
    )  # fmt: skip


def draw_restorations(
    recipe: AutoencodeRecipe, phase: int, codec: TokenCodec, config: GMSAConfig, stream: np.ndarray
) -> Callable[[random.Random], Example]:
    """A function that draws a phase's examples: of the recipe's tasks in the last phase, else restorations alone.

    Args:
        recipe: The stage's settings.
        phase: Its index among the recipe's phases.
        codec: The tokenizer.
        config: The checkpoint's templates.
        stream: Token stream of the corpus.
    """
    current, last = recipe.phases[phase], phase == len(recipe.phases) - 1
    tasks = Tasks(codec, config, stream, current.rates, current.windows, noise=recipe.noise)
    return tasks.draw(recipe.tasks if last else {"restore": 1.0})


def compressor_parameters(checkpoint: Checkpoint) -> list[Tensor]:
    """What learns of the compressor where the decoder is frozen: not the embeddings that they share."""
    frozen = {id(parameter) for parameter in checkpoint.decoder.parameters()}
    return [parameter for parameter in checkpoint.compressor.parameters() if id(parameter) not in frozen]


def _start(recipe: AutoencodeRecipe, base: str | Path, revision: str | None) -> Checkpoint:
    dtype = getattr(torch, recipe.frozen_dtype)
    rates = sorted(set(recipe.phases[-1].rates))
    if is_checkpoint(Path(base)):
        _check_goes_on(recipe, read_config(Path(base)))
        start = load_checkpoint(Path(base), dtype=dtype)
        start.config.rates, start.config.fingerprint, start.config.compressor_dtype = rates, "", ""
        return start
    decoder, tokenizer = load_base(base, dtype=dtype, revision=revision)
    config = make_config(recipe, decoder, rates)
    return Checkpoint(config, Compressor.from_base(decoder, config), decoder, tokenizer)


def _check_goes_on(recipe: AutoencodeRecipe, config: GMSAConfig) -> None:
    """Raise ConfigError unless the recipe can go on from a checkpoint of these settings."""
    names = ("encoder_layers", "lsa_layers", "window")
    expected, got = ({name: getattr(of, name) for name in names} for of in (config, recipe))
    if expected != got or recipe.save == "adapters":
        raise ConfigError(
            "recipe", expected=f"{expected}, as in the checkpoint to go on from, and save: full",
            got=f"{got}, save: {recipe.save}", remedy="Change the recipe, or start from a base model.",
        )  # fmt: skip


def _trainable(recipe: AutoencodeRecipe, start: Checkpoint) -> list[Tensor]:
    """LoRA of the encoder, or all of it, and the LSA; the decoder where the recipe says so, else not its embeddings."""
    alignment, decoder = list(start.compressor.alignment.parameters()), list(start.decoder.parameters())
    if recipe.lora:
        learned: list[Tensor] = [*add_lora(start.compressor.encoder, recipe.lora), *alignment]
    else:
        learned = compressor_parameters(start)
    return [*learned, *decoder] if recipe.train_decoder else learned


def _save(recipe: AutoencodeRecipe, trained: Checkpoint, base: str, revision: str | None, target: Path) -> None:
    if recipe.save == "adapters" and recipe.lora is not None:
        save_adapters(trained, target, base=base, revision=revision, lora=recipe.lora, decoder="base")
        return
    if recipe.lora is not None:
        merge_lora(trained.compressor.encoder)
    save_checkpoint(trained, target, None if recipe.frozen_dtype == "float32" else torch.bfloat16)

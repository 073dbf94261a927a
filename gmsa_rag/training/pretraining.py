"""Stage 0, pretraining: a small base language model, from scratch or from a pruned one."""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from gmsa_rag.errors import ConfigError, DataError
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.modeling.files import load_base, swapping
from gmsa_rag.training.data import find_files, read_documents, token_stream
from gmsa_rag.training.examples import Example, Segment
from gmsa_rag.training.loop import Run
from gmsa_rag.training.objective import Objective
from gmsa_rag.training.recipe import PretrainRecipe
from gmsa_rag.training.recipe_file import keep_recipe
from gmsa_rag.training.tokenizer import train_tokenizer

TEXT_SUFFIXES = (".txt.gz", ".txt")
TOKENIZER_DOCUMENTS = 8_000


def pretrain(
    recipe: PretrainRecipe, data: Path, out: Path, device: str = "cpu", *, base: str | Path | None = None
) -> Path:
    """Train tokenizer and base; resumes where an earlier run in `out` stopped.

    Args:
        recipe: The stage's settings.
        data: Directory of the training data.
        out: Directory of the run.
        device: Where to train.
        base: Directory of a causal LM to train on, as from `prune`; None starts from random weights.

    Returns:
        Directory of the base, a plain transformers checkpoint.

    Raises:
        ConfigError: If there is neither a base nor an architecture.
        DataError: If a data file is missing or unreadable.
        CheckpointError: If the base cannot be read or lacks weights, or the run in `out` was started with another
            recipe or base.
    """
    files = find_files(data, recipe.text, "text", TEXT_SUFFIXES)
    _check_start(recipe, base)
    keep_recipe(recipe, out)
    if base is None:
        with PartialState(cpu=device == "cpu").main_process_first():
            tokenizer = _tokenizer(files, recipe, out / "tokenizer")
        decoder = _decoder(recipe, tokenizer)
    else:
        decoder, tokenizer = load_base(base, dtype=torch.float32)
    codec = TokenCodec(tokenizer)
    draw = _draws(token_stream(files, codec, codec.end, out.parent), recipe.window)

    settings = recipe.optimisation
    objective = Objective(decoder, bf16=settings.bf16, cross_entropy=settings.cross_entropy)
    run = Run(out, settings, objective, decoder.parameters(), window=recipe.window, device=device)
    run.train(lambda phase: draw)
    if run.gather():
        save_base(decoder, tokenizer, out / "base")
    return out / "base"


def save_base(decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a base with its tokenizer, all of it or nothing."""
    with swapping(folder) as beside:
        decoder.save_pretrained(beside)
        tokenizer.save_pretrained(beside)


def first_documents(files: list[Path]) -> Iterator[str]:
    """The documents that a tokenizer is made for: the first of each file, as many of each."""
    each = TOKENIZER_DOCUMENTS // len(files)
    return (text for path in files for text in itertools.islice(read_documents(path), each))


def _check_start(recipe: PretrainRecipe, base: str | Path | None) -> None:
    if base is None and not recipe.architecture:
        raise ConfigError(
            "pretraining", expected="an architecture, or a base to train on", got="neither",
            remedy="Name the recipe's architecture, or give --base what `gmsa train prune` made.",
        )  # fmt: skip


def _draws(stream: np.ndarray, window: int) -> Callable[[random.Random], Example]:
    """The function that draws a row of so many tokens, all of them learned."""
    if len(stream) <= window:
        raise DataError(
            "corpus", expected=f"more than {window} tokens", got=str(len(stream)), remedy="Name more text files."
        )

    def draw(rng: random.Random) -> Example:
        start = rng.randrange(len(stream) - window)
        return [Segment(stream[start : start + window].tolist(), learn=True)]

    return draw


def _tokenizer(files: list[Path], recipe: PretrainRecipe, folder: Path) -> PreTrainedTokenizerBase:
    if not folder.exists():
        with swapping(folder) as beside:
            train_tokenizer(first_documents(files), recipe.vocab_size).save_pretrained(beside)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def _decoder(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    set_seed(recipe.optimisation.seed)
    config = AutoConfig.for_model(
        **recipe.architecture,
        vocab_size=recipe.vocab_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    decoder: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return decoder

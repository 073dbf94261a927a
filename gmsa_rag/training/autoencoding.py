"""Stage 1, autoencoding (AE): the compressor learns to keep, the decoder to read, what a passage says."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from gmsa_rag.config import GMSAConfig
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.modeling.checkpoint import Checkpoint, save_checkpoint
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.training.data import find_files, token_stream
from gmsa_rag.training.examples import Example
from gmsa_rag.training.loop import Run
from gmsa_rag.training.pretraining import TEXT_SUFFIXES
from gmsa_rag.training.recipe import AutoencodeRecipe, keep_recipe
from gmsa_rag.training.tasks import Tasks


def autoencode(recipe: AutoencodeRecipe, base: Path, data: Path, out: Path, device: str = "cpu") -> Path:
    """Make a GMSA checkpoint of a base; resumes where an earlier run in `out` stopped.

    Args:
        recipe: The stage's settings.
        base: Directory or hub id of a causal LM.
        data: Directory of the training data.
        out: Directory of the run.
        device: Where to train.

    Returns:
        Directory of the checkpoint.

    Source: GMSA, arXiv 2505.12215, "Autoencoder Training"; there the decoder is frozen.
    """
    keep_recipe(recipe, out)
    decoder = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = GMSAConfig(
        encoder_layers=recipe.encoder_layers,
        lsa_layers=recipe.lsa_layers,
        hidden_size=decoder.config.hidden_size,
        window=recipe.window,
        rates=sorted(set(recipe.phases[-1].rates)),
        **recipe.templates,
    )
    compressor = Compressor.from_base(decoder, config)
    nn.ModuleList([decoder, compressor]).to(device)
    codec = TokenCodec(tokenizer)
    files = find_files(data, recipe.text, "text", TEXT_SUFFIXES)
    stream = token_stream(files, codec, codec.end, out.parent)

    def make(phase: int) -> Callable[[random.Random], Example]:
        current = recipe.phases[phase]
        tasks = Tasks(codec, config, stream, current.rates, current.windows)
        return tasks.draw(recipe.tasks if phase == len(recipe.phases) - 1 else {"restore": 1.0})

    frozen = set() if recipe.train_decoder else {id(p) for p in decoder.parameters()}  # the shared embeddings too
    trainable = [p for p in (*compressor.parameters(), *decoder.parameters()) if id(p) not in frozen]
    Run(out, recipe.optimisation, decoder, compressor, trainable, window=recipe.window, phases=recipe.phases).train(
        make
    )
    save_checkpoint(Checkpoint(config, compressor, decoder, tokenizer), out / "checkpoint")
    return out / "checkpoint"

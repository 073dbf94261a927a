"""Stage 2, knowledge extraction fine-tuning (KEFT): the decoder learns to answer from soft tokens."""

import random
from collections.abc import Callable
from pathlib import Path

import torch

from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.modeling.checkpoint import load_checkpoint, save_checkpoint
from gmsa_rag.training.data import find_files, read_questions, token_stream
from gmsa_rag.training.examples import Example
from gmsa_rag.training.loop import Run
from gmsa_rag.training.pretraining import TEXT_SUFFIXES
from gmsa_rag.training.recipe import KeftRecipe, keep_recipe
from gmsa_rag.training.tasks import Tasks, group_questions

QUESTION_SUFFIXES = (".jsonl.gz", ".jsonl")


def keft(recipe: KeftRecipe, checkpoint: Path, data: Path, out: Path, device: str = "cpu") -> Path:
    """Fine-tune the decoder of a checkpoint; resumes where an earlier run in `out` stopped.

    Args:
        recipe: The stage's settings.
        checkpoint: Directory of an autoencoded checkpoint.
        data: Directory of the training data.
        out: Directory of the run.
        device: Where to train.

    Returns:
        Directory of the new checkpoint; its fingerprint is the old one's, since the compressor is the same.

    Source: GMSA, arXiv 2505.12215, "Knowledge Extraction Fine-tuning".
    """
    keep_recipe(recipe, out)
    start = load_checkpoint(checkpoint, dtype=torch.float32, device=device)
    codec = TokenCodec(start.tokenizer)
    files = find_files(data, recipe.text, "text", TEXT_SUFFIXES)
    stream = token_stream(files, codec, codec.end, out.parent)
    questions = [
        q for path in find_files(data, recipe.questions, "qa", QUESTION_SUFFIXES) for q in read_questions(path)
    ]
    groups = group_questions(questions)

    def make(phase: int) -> Callable[[random.Random], Example]:
        current = recipe.phases[phase]
        tasks = Tasks(
            codec, start.config, stream, current.rates, current.windows, groups, recipe.full_text, recipe.max_positions
        )
        return tasks.draw(recipe.tasks)

    # Embeddings stay frozen: the compressor reads the same table, and memories already stored were made with it.
    frozen = {id(start.decoder.get_input_embeddings().weight), id(start.decoder.get_output_embeddings().weight)}
    trainable = [p for p in start.decoder.parameters() if id(p) not in frozen]
    window = start.config.window
    Run(
        out, recipe.optimisation, start.decoder, start.compressor, trainable, window=window, phases=recipe.phases
    ).train(make)
    start.config.rates = sorted(set(recipe.phases[-1].rates))
    save_checkpoint(start, out / "checkpoint")
    return out / "checkpoint"

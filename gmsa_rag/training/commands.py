"""`gmsa train pretrain | autoencode | keft`: the training stages on the command line."""

import logging
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Train a checkpoint, stage by stage. Each stage resumes in its --out.")

Recipe = Annotated[Path, typer.Option(help="Recipe file, or the name of a bundled one.")]
Data = Annotated[Path, typer.Option(help="Directory of the training data.", exists=True, file_okay=False)]
Out = Annotated[Path, typer.Option(help="Directory of the run.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's own choice.")]


@app.command()
def pretrain(recipe: Recipe, data: Data, out: Out, device: Device = "cpu", threads: Threads = 0) -> None:
    """Train a small base language model and its tokenizer from scratch."""
    from gmsa_rag.training import pretraining
    from gmsa_rag.training.recipe import PretrainRecipe, load_recipe

    _prepare(threads)
    typer.echo(pretraining.pretrain(load_recipe(recipe, PretrainRecipe), data, out, device))


@app.command()
def autoencode(
    recipe: Recipe,
    base: Annotated[Path, typer.Option(help="Directory or hub id of the base model.")],
    data: Data,
    out: Out,
    device: Device = "cpu",
    threads: Threads = 0,
) -> None:
    """Train a compressor that keeps what a passage says (AE)."""
    from gmsa_rag.training import autoencoding
    from gmsa_rag.training.recipe import AutoencodeRecipe, load_recipe

    _prepare(threads)
    typer.echo(autoencoding.autoencode(load_recipe(recipe, AutoencodeRecipe), base, data, out, device))


@app.command()
def keft(
    recipe: Recipe,
    checkpoint: Annotated[Path, typer.Option(help="Directory of an autoencoded checkpoint.", exists=True)],
    data: Data,
    out: Out,
    device: Device = "cpu",
    threads: Threads = 0,
) -> None:
    """Fine-tune the decoder to answer from soft tokens (KEFT)."""
    from gmsa_rag.training import keft as stage
    from gmsa_rag.training.recipe import KeftRecipe, load_recipe

    _prepare(threads)
    typer.echo(stage.keft(load_recipe(recipe, KeftRecipe), checkpoint, data, out, device))


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Option(help="Directory of a trained checkpoint.", exists=True)],
    out: Annotated[Path, typer.Option(help="Directory of the exported one; its README.md is kept.")],
    dtype: Annotated[str, typer.Option(help="Of the files.")] = "bfloat16",
) -> None:
    """Write a checkpoint for use, in a smaller dtype, and print its fingerprint."""
    from gmsa_rag.inference.engine import GMSA
    from gmsa_rag.inference.loading import resolve_dtype
    from gmsa_rag.modeling.checkpoint import verify_fingerprint

    GMSA.from_pretrained(checkpoint, device="cpu").save_pretrained(out, dtype=resolve_dtype(dtype, "cpu"))
    typer.echo(verify_fingerprint(out))


def _prepare(threads: int) -> None:
    import torch

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if threads:
        torch.set_num_threads(threads)

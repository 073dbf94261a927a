"""`gmsa train prune | pretrain | autoencode | keft`: the training stages on the command line."""

import logging
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Train a checkpoint, stage by stage. Each stage goes on in its --out.")

Recipe = Annotated[Path, typer.Option(help="Recipe file, or the name of a bundled one.")]
Data = Annotated[Path, typer.Option(help="Directory of the training data.", exists=True, file_okay=False)]
Out = Annotated[Path, typer.Option(help="Directory of the run.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; `accelerate launch` gives each process its GPU.")]
Strict = Annotated[bool, typer.Option("--strict", help="End at a malformed row; else it is named and left out.")]
Revision = Annotated[str | None, typer.Option(help="Of a hub id.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's own choice.")]
Steps = Annotated[int, typer.Option(help="End after so many steps, not where the recipe does; for rehearsals.", min=0)]


@app.command()
def prune(
    recipe: Recipe,
    base: Annotated[str, typer.Option(help="Directory or hub id of a causal LM, or a GGUF file.")],
    data: Data,
    out: Out,
    revision: Revision = None,
    threads: Threads = 0,
) -> None:
    """Cut a small base out of a pretrained one."""
    from gmsa_rag.training import pruning
    from gmsa_rag.training.recipe import PruneRecipe
    from gmsa_rag.training.recipe_file import load_recipe

    _prepare("cpu", threads)
    typer.echo(pruning.prune(load_recipe(recipe, PruneRecipe), base, data, out, revision=revision))


@app.command()
def pretrain(
    recipe: Recipe,
    data: Data,
    out: Out,
    base: Annotated[
        Path | None, typer.Option(help="Directory of a pruned base to train on.", exists=True, file_okay=False)
    ] = None,
    device: Device = "auto",
    threads: Threads = 0,
    steps: Steps = 0,
) -> None:
    """Train a small base language model, from scratch or from a pruned one."""
    from gmsa_rag.training import pretraining
    from gmsa_rag.training.recipe import PretrainRecipe
    from gmsa_rag.training.recipe_file import load_recipe

    place = _prepare(device, threads)
    loaded = load_recipe(recipe, PretrainRecipe, steps=steps or None)
    typer.echo(pretraining.pretrain(loaded, data, out, place, base=base))


@app.command()
def autoencode(
    recipe: Recipe,
    base: Annotated[str, typer.Option(help="Directory or hub id of the base model, or a checkpoint to go on from.")],
    data: Data,
    out: Out,
    revision: Revision = None,
    device: Device = "auto",
    threads: Threads = 0,
    steps: Steps = 0,
) -> None:
    """Train a compressor that keeps what a passage says (AE)."""
    from gmsa_rag.training import autoencoding
    from gmsa_rag.training.recipe import AutoencodeRecipe
    from gmsa_rag.training.recipe_file import load_recipe

    place = _prepare(device, threads)
    loaded = load_recipe(recipe, AutoencodeRecipe, steps=steps or None)
    typer.echo(autoencoding.autoencode(loaded, base, data, out, place, revision=revision))


@app.command()
def keft(
    recipe: Recipe,
    checkpoint: Annotated[Path, typer.Option(help="Directory of an autoencoded checkpoint.", exists=True)],
    data: Data,
    out: Out,
    strict: Strict = False,
    device: Device = "auto",
    threads: Threads = 0,
    steps: Steps = 0,
) -> None:
    """Fine-tune the decoder to answer from soft tokens (KEFT)."""
    from gmsa_rag.training import keft as stage
    from gmsa_rag.training.recipe import KeftRecipe
    from gmsa_rag.training.recipe_file import load_recipe

    place = _prepare(device, threads)
    typer.echo(
        stage.keft(load_recipe(recipe, KeftRecipe, steps=steps or None), checkpoint, data, out, place, strict=strict)
    )


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Option(help="Directory of a trained checkpoint.", exists=True)],
    out: Annotated[Path, typer.Option(help="Directory of the exported one; its README.md is kept.")],
    dtype: Annotated[str, typer.Option(help="Of the files.")] = "bfloat16",
    shard_mb: Annotated[int, typer.Option(help="Most megabytes of a file of weights; 0 for the usual size.")] = 0,
) -> None:
    """Write a checkpoint in full for use, in a smaller dtype, and print its fingerprint."""
    from gmsa_rag.inference.loading import resolve_dtype
    from gmsa_rag.modeling.checkpoint import load_checkpoint, save_checkpoint, verify_fingerprint
    from gmsa_rag.modeling.files import SHARD_BYTES

    shard_bytes = shard_mb * 1_000_000 or SHARD_BYTES
    save_checkpoint(load_checkpoint(checkpoint), out, resolve_dtype(dtype, "cpu"), shard_bytes=shard_bytes)
    typer.echo(verify_fingerprint(out))


def _prepare(device: str, threads: int) -> str:
    """Where to train, once logging and threads are set."""
    import torch

    from gmsa_rag.inference.loading import resolve_device

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if threads:
        torch.set_num_threads(threads)
    return resolve_device(device)

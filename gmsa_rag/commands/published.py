"""`gmsa import-published`: a checkpoint of the published implementation, turned into one of ours."""

from pathlib import Path
from typing import Annotated

import typer


def import_published(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="State dict: .safetensors, .bin or .pt, or a directory with one.")
    ],
    base: Annotated[
        str, typer.Option(help="Directory or hub id of the base model; only its config and tokenizer are read.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory of the checkpoint to write.")],
    lora_alpha: Annotated[
        float | None, typer.Option(help="Alpha of the encoder's LoRA. Without it: 32, if the rank is 128.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Longest run of tokens to compress at once. Without it: all the base takes."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the files: float32, bfloat16 or float16.")] = "float32",
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR", help="Directory or hub id of the tokenizer. Without it: the base's.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub id of the base.")] = None,
    local_files_only: Annotated[bool, typer.Option("--local-files-only", help="Never ask the hub.")] = False,
) -> None:
    """Import a checkpoint of the published GMSA implementation."""
    from gmsa_rag.inference.loading import resolve_dtype
    from gmsa_rag.modeling import published
    from gmsa_rag.modeling.checkpoint import save_checkpoint, verify_fingerprint

    written = resolve_dtype(dtype, "cpu")
    imported = published.import_published(
        checkpoint,
        base,
        lora_alpha=lora_alpha,
        window=window,
        tokenizer=tokenizer,
        revision=revision,
        local_files_only=local_files_only,
    )
    config = save_checkpoint(imported, out, dtype=written)
    typer.echo(
        f"{out}: encoder of {config.encoder_layers} layers, layer semantic alignment of {config.lsa_layers}, "
        f"window {config.window}, fingerprint {verify_fingerprint(out)}"
    )

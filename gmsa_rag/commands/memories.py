"""`gmsa compress` and `gmsa restore`."""

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmsa_rag.commands.options import Device, Model, Rate, existing_store
from gmsa_rag.errors import DataError, InputError, UnknownMemoryError

if TYPE_CHECKING:
    from gmsa_rag.memory.memory import Memory

DEFAULT_MODEL = "gmsa-mini"


def compress(
    file: Annotated[str, typer.Argument(metavar="FILE", help="UTF-8 text file; - reads standard input.")],
    rate: Rate = 8,
    out: Annotated[Path, typer.Option(help="Memory file to write.")] = Path("memory.safetensors"),
    force: Annotated[bool, typer.Option("--force", help="Replace the memory file if it is there.")] = False,
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Compress a text into a memory file. It is as confidential as the text."""
    text = _read(file)
    if out.exists() and not force:
        remedy = "Choose another --out, or replace it with --force."
        raise InputError(f"--out {out}", expected="a new file", got="one that is there", remedy=remedy)
    from gmsa_rag.inference.engine import GMSA

    memory = GMSA.from_pretrained(model or DEFAULT_MODEL, device=device).compress(text, rate)
    data = memory.to_bytes()
    _replace(out, data)
    typer.echo(
        f"{out}: {memory.num_tokens} tokens in {memory.num_soft_tokens} soft tokens (rate {rate}), "
        f"{len(data)} bytes, key {memory.key}"
    )


def restore(
    file: Annotated[
        Path | None, typer.Argument(metavar="MEMORY_FILE", help="What `gmsa compress` wrote.", show_default=False)
    ] = None,
    store: Annotated[Path | None, typer.Option(metavar="STORE", help="Take the memory from a store.")] = None,
    key: Annotated[str | None, typer.Option(help="Key of the memory in the store, 32 hex digits.")] = None,
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Print the text as a memory holds it."""
    if (store is None) != (key is None) or (file is None) == (store is None):
        raise typer.BadParameter("give a MEMORY_FILE, or --store and --key together")
    noted = ""
    if store is not None and key is not None:
        from gmsa_rag.pipeline import noted_models

        memory = _stored(existing_store(store), key)
        noted = noted_models(store)[0]
    else:
        memory = _loaded(file or Path())
    from gmsa_rag.inference.engine import GMSA

    typer.echo(GMSA.from_pretrained(model or noted or DEFAULT_MODEL, device=device).restore(memory))


def _read(file: str) -> str:
    from gmsa_rag.documents import decode_utf8, read_text

    text = decode_utf8(sys.stdin.buffer.read(), "standard input") if file == "-" else read_text(Path(file))
    if not text.strip():
        what = "standard input" if file == "-" else file
        raise DataError(what, expected="some text", got="nothing but white space", remedy="Give another file.")
    return text


def _stored(store: Path, key: str) -> "Memory":
    from gmsa_rag.memory.store import MemoryStore

    with MemoryStore(store) as opened:
        memory = opened.get(key)
    if memory is None:
        remedy = "Take a key from the store, e.g. `gmsa_key` in the metadata of a passage."
        raise UnknownMemoryError(f"memory {key}", expected=f"it in {store}", got="none", remedy=remedy)
    return memory


def _loaded(file: Path) -> "Memory":
    from gmsa_rag.documents import read_bytes
    from gmsa_rag.memory.memory import Memory

    return Memory.from_bytes(read_bytes(file))


def _replace(path: Path, data: bytes) -> None:
    """Write a file for its owner only, beside its place, and move it there."""
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(beside, path)
        finally:
            Path(beside).unlink(missing_ok=True)
    except OSError as error:
        got = error.strerror or str(error)
        remedy = "Check the path, its permissions and the free space."
        raise InputError(f"--out {path}", expected="a file to write", got=got, remedy=remedy) from error

"""Options and checks that several subcommands share."""

import re
from pathlib import Path
from typing import Annotated

import typer

from gmsa_rag.errors import StoreError

Model = Annotated[
    str | None,
    typer.Option(
        envvar="GMSA_MODEL",
        help="Bundled name, directory or hub id of a checkpoint. Without it: the one the store was made with, "
        "or gmsa-mini.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Rate = Annotated[int, typer.Option(min=1, help="Tokens per soft token.")]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def existing_store(path: Path) -> Path:
    """The path itself; StoreError unless there is a file, since opening would make one."""
    if not path.is_file():
        raise StoreError(
            f"store {path}",
            expected="a store that was made by `gmsa index`",
            got="a directory" if path.is_dir() else "nothing there",
            remedy="Check the path, or index documents: `gmsa index DOCUMENTS --out STORE`.",
        )
    return path


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control characters are replaced."""
    return _CONTROL.sub("\ufffd", text)

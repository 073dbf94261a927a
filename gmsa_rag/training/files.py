"""Reading and writing of data files: gzipped or plain, a line at a time, and never half of one in its place."""

import gzip
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, cast

from gmsa_rag.errors import DataError, InputError
from gmsa_rag.writing import beside

Row = Mapping[str, Any]


@contextmanager
def open_data(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a data file, decompressed where its name ends in `.gz`.

    Raises:
        DataError: If it is missing or damaged, or what is read in the block turns out not to be UTF-8.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            yield cast(IO[bytes], file)  # GzipFile is one in all but its declaration
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            str(path), expected="a readable UTF-8 file", got=str(error), remedy="Check the path and the file."
        ) from error


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines, one at a time, gzipped where the name ends in `.gz`.

    Args:
        path: File to make or replace; its folder is made where it is missing. It appears when all rows are written.
        rows: JSON objects.
    Returns:
        How many rows were written.
    Raises:
        InputError: If the file cannot be written.
    """
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as part, part.open("wb") as raw, _packed(raw, path.suffix == ".gz") as file:
            for row in rows:
                # Only lone surrogates cannot be encoded, and Python escapes those as JSON does.
                file.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
                count += 1
    except OSError as error:
        raise InputError(
            f"output {path}",
            expected="a file to write",
            got=error.strerror or str(error),
            remedy="Check the path, its permissions and the free space.",
        ) from error
    return count


def check_apart(files: Mapping[str, Path]) -> None:
    """Refuse files one of which would be written over another.

    Args:
        files: Paths by the names that messages have for them; they may be missing.
    Raises:
        InputError: If two of them are one file, also by way of links.
    """
    for (name, path), (other_name, other) in itertools.combinations(files.items(), 2):
        if _is_same(path, other):
            raise InputError(
                other_name, expected=f"another file than {name}", got=str(other), remedy="Choose another path."
            )


def describe_files(files: Sequence[Path]) -> list[str]:
    """Name, size and time of change of each file: a cache made from them is good while these stay the same.

    Raises:
        DataError: If a file is missing.
    """
    described = []
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                str(path), expected="a readable file", got=error.strerror or str(error), remedy="Check the path."
            ) from error
        described.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return described


def _is_same(path: Path, other: Path) -> bool:
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them is not there yet
        return False


@contextmanager
def _packed(raw: BufferedIOBase, gzipped: bool) -> Iterator[BufferedIOBase]:
    """The file itself, or one that compresses into it; without name and time, equal rows give equal files."""
    if not gzipped:
        yield raw
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
        yield file

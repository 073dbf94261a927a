"""Training data: plain-text corpora and question files from a directory the caller names, read as a stream."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from gmsa_rag.errors import DataError
from gmsa_rag.training.files import describe_files, open_data
from gmsa_rag.training.question_rows import Question, parse_line
from gmsa_rag.writing import beside

if TYPE_CHECKING:
    from gmsa_rag.inference.tokens import TokenCodec

__all__ = ["Question", "Skipped", "find_files", "read_documents", "read_questions", "read_rows", "token_stream"]

SEPARATOR = "<|doc|>"
BATCH_DOCUMENTS, BATCH_CHARACTERS = 512, 2**22  # a batch to tokenise ends at whichever comes first
NAMED, LOGGED = 1000, 3
log = logging.getLogger(__name__)


@dataclass
class Skipped:
    """Rows that were left out because they are malformed.

    Attributes:
        rows: File, row number and reason of the first 1000 of them.
        count: How many there are in all.
    """

    rows: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, row: str) -> None:
        """Count a row, and name it while there is room: a file may have millions of them."""
        if len(self.rows) < NAMED:
            self.rows.append(row)
        self.count += 1


def read_documents(path: Path) -> Iterator[str]:
    """Documents of a `.txt` or `.txt.gz` file, separated by a line `<|doc|>`, one in memory at a time.

    Raises:
        DataError: If the file is missing, or not UTF-8.
    """
    lines: list[str] = []
    with open_data(path) as file, io.TextIOWrapper(file, encoding="utf-8") as text:
        for line in text:
            if line.strip() == SEPARATOR:
                yield "".join(lines).strip()
                lines = []
            else:
                lines.append(line)
    if lines:
        yield "".join(lines).strip()


def read_questions(path: Path, *, strict: bool = True, skipped: Skipped | None = None) -> Iterator[Question]:
    """Questions of a `.jsonl` or `.jsonl.gz` file, one in memory at a time.

    A row has one of two forms: `contexts` of `title` and `text`, `gold`, `question` and `answers`; or, as the published
    GMSA files have it, `input` (the one passage), `prompt` (the question) and `answer` (a text or a list of texts).

    Args:
        path: The file.
        strict: Whether a malformed row is an error. Otherwise it is left out, and the log says so.
        skipped: Takes the names of rows that are left out.
    Raises:
        DataError: If the file is missing, or `strict` and a row is malformed; the row is named.
    """
    skipped = Skipped() if skipped is None else skipped
    before, known = skipped.count, len(skipped.rows)
    for _, question in read_rows(path, strict=strict, skipped=skipped):
        yield question
    warn_of_skipped(path.name, Skipped(skipped.rows[known:], skipped.count - before))


def read_rows(path: Path, *, strict: bool, skipped: Skipped) -> Iterator[tuple[bytes, Question]]:
    """The sound rows of a question file: the line as it stands there, and its question. Blank lines are no rows.

    Raises:
        DataError: As for `read_questions`.
    """
    with open_data(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                question = parse_line(line)
            except ValueError as error:
                if strict:
                    raise _malformed(f"{path.name}, row {number}", error) from error
                skipped.add(f"{path.name}, row {number}: {error}")
                continue
            yield line, question


def warn_of_skipped(source: str, skipped: Skipped) -> None:
    """Log the first few rows that were left out, and how many there are; nothing where there are none."""
    for row in skipped.rows[:LOGGED]:
        log.warning("left out: %s", row)
    if skipped.count:
        log.warning("%s: %d malformed rows were left out", source, skipped.count)


def find_files(data: Path, names: Sequence[str], folder: str, suffixes: Sequence[str]) -> list[Path]:
    """Files of the data directory by their names without suffix, such as `wikipedia_en`.

    Raises:
        DataError: If one is missing.
    """
    return [_find(data, name, folder, suffixes) for name in names]


def token_stream(files: Sequence[Path], codec: TokenCodec, separator: int, cache: Path) -> np.ndarray:
    """All documents' tokens in one array, each document ended by `separator`. It is never in memory as a whole.

    Args:
        files: Text files.
        codec: The tokenizer.
        separator: Token id between documents.
        cache: Folder that keeps the result under a name made of tokenizer and files; memory-mapped from then on.

    Returns:
        (num_tokens,), uint16 where the tokenizer's ids fit, else uint32, read-only.

    Raises:
        DataError: If a file is missing, or not UTF-8.
    """
    parts = [codec.identity, str(separator), *describe_files(files)]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    path = cache / f"tokens-{name}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        documents = itertools.chain.from_iterable(map(read_documents, files))
        with beside(path) as part, part.open("wb") as file:
            _write_tokens(file, documents, codec, separator)
    stream: np.ndarray = np.load(path, mmap_mode="r")
    return stream


def _write_tokens(file: IO[bytes], documents: Iterable[str], codec: TokenCodec, separator: int) -> None:
    largest = max(separator, *codec.tokenizer.get_vocab().values())
    dtype = np.dtype(np.uint16 if largest < 2**16 else np.uint32)
    count = 0
    _write_header(file, dtype, count)
    for batch in _batches(documents):
        ids = [i for document in codec.encode(batch) for i in (*document, separator)]
        file.write(np.array(ids, dtype=dtype).tobytes())
        count += len(ids)
    file.seek(0)
    _write_header(file, dtype, count)


def _write_header(file: IO[bytes], dtype: np.dtype, count: int) -> None:
    """The head of a .npy file; numpy leaves room in it, so that its length does not depend on the count."""
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, head)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _malformed(row: str, error: ValueError) -> DataError:
    return DataError(
        row,
        expected="a JSON object with contexts, gold, question and answers, or with input, prompt and answer",
        got=str(error),
        remedy="Mend or remove the row, or have malformed rows left out.",
    )


def _find(data: Path, name: str, folder: str, suffixes: Sequence[str]) -> Path:
    for suffix in suffixes:
        for path in (data / folder / f"{name}{suffix}", data / f"{name}{suffix}"):
            if path.is_file():
                return path
    raise DataError(
        f"data file {name}",
        expected=f"{folder}/{name} with suffix {' or '.join(suffixes)} in {data}",
        got="no such file",
        remedy="Name the right directory with --data, or change the recipe.",
    )

"""Training data: plain-text corpora and question files from a directory the caller names."""

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmsa_rag.errors import DataError
from gmsa_rag.inference.tokens import TokenCodec

SEPARATOR = "<|doc|>"


@dataclass(frozen=True)
class Question:
    """A question with the passages it is asked of.

    Attributes:
        question: The question.
        answers: Accepted answers, the first is the one trained on.
        titles: Title of each passage.
        passages: Text of each passage.
        gold: Indices of the passages that hold the answer.
    """

    question: str
    answers: tuple[str, ...]
    titles: tuple[str, ...]
    passages: tuple[str, ...]
    gold: tuple[int, ...]


def read_documents(path: Path) -> Iterator[str]:
    """Documents of a `.txt` or `.txt.gz` file, separated by a line `<|doc|>`.

    Raises:
        DataError: If the file is missing, or not UTF-8.
    """
    lines: list[str] = []
    for line in _lines(path):
        if line.strip() == SEPARATOR:
            yield "".join(lines).strip()
            lines = []
        else:
            lines.append(line)
    if lines:
        yield "".join(lines).strip()


def read_questions(path: Path) -> Iterator[Question]:
    """Questions of a `.jsonl` or `.jsonl.gz` file: `contexts` of `title` and `text`, `gold`, `question`, `answers`.

    Raises:
        DataError: If the file is missing, or a row is malformed; the row is named.
    """
    for number, line in enumerate(_lines(path), 1):
        try:
            yield _question(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path.name}, row {number}",
                expected="a JSON object with question, answers, contexts and gold",
                got=f"{type(error).__name__}: {error}",
                remedy="Mend or remove the row.",
            ) from error


def find_files(data: Path, names: Sequence[str], folder: str, suffixes: Sequence[str]) -> list[Path]:
    """Files of the data directory by their names without suffix, such as `wikipedia_en`.

    Raises:
        DataError: If one is missing.
    """
    return [_find(data, name, folder, suffixes) for name in names]


def token_stream(files: Sequence[Path], codec: TokenCodec, separator: int, cache: Path) -> np.ndarray:
    """All documents' tokens in one array, each document ended by `separator`.

    Args:
        files: Text files.
        codec: The tokenizer.
        separator: Token id between documents.
        cache: Folder that keeps the result under a name made of tokenizer and files; memory-mapped from then on.

    Returns:
        (num_tokens,), uint16 or uint32, read-only.
    """
    sizes = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    name = hashlib.sha256("\n".join([codec.identity, str(separator), *sizes]).encode()).hexdigest()[:16]
    path = cache / f"tokens-{name}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part.npy")
        np.save(beside, _tokenise(files, codec, separator))
        beside.replace(path)
    stream: np.ndarray = np.load(path, mmap_mode="r")
    return stream


def _tokenise(files: Sequence[Path], codec: TokenCodec, separator: int) -> np.ndarray:
    chunks: list[np.ndarray] = []
    for path in files:
        batch: list[str] = []
        for document in read_documents(path):
            batch.append(document)
            if len(batch) == 512:
                chunks += [np.array([*ids, separator], dtype=np.uint32) for ids in codec.encode(batch)]
                batch = []
        chunks += [np.array([*ids, separator], dtype=np.uint32) for ids in codec.encode(batch)]
    stream = np.concatenate(chunks)
    return stream.astype(np.uint16) if int(stream.max()) < 2**16 else stream


def _question(row: dict[str, Any]) -> Question:
    """The question of a row; ValueError, KeyError or TypeError where it is malformed."""
    question = Question(
        question=row["question"].strip(),
        answers=tuple(row["answers"]),
        titles=tuple(context.get("title") or "" for context in row["contexts"]),
        passages=tuple(context["text"] for context in row["contexts"]),
        gold=tuple(row["gold"]),
    )
    if isinstance(row["answers"], str) or not all(
        isinstance(text, str) for text in question.answers + question.passages + question.titles
    ):
        raise TypeError("answers and texts are not lists of texts")
    if not question.answers or not question.gold or not all(0 <= g < len(question.passages) for g in question.gold):
        raise ValueError("no answer, or gold that names no context")
    return question


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


def _lines(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(
            str(path), expected="a readable UTF-8 file", got=str(error), remedy="Check the path and the file."
        ) from error

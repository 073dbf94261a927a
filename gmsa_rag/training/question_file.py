"""Questions grouped by their gold passages, on disk: a question file may be larger than memory."""

from __future__ import annotations

import hashlib
import json
import mmap
import secrets
import shutil
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np

from gmsa_rag.training.data import Skipped, read_rows, warn_of_skipped
from gmsa_rag.training.files import describe_files
from gmsa_rag.training.question_rows import Question, parse_line

FORMAT = 3
ROWS, STARTS, BOUNDS, SKIPPED = "rows.jsonl", "starts.npy", "bounds.npy", "skipped.json"


class QuestionGroups(Sequence[list[Question]]):
    """Questions that share their gold passages, together; groups in the order of their first questions.

    `groups[i]` reads the rows of group i. In memory are at most maps of files, so that one object may be sent to worker
    processes, or be shared with forked ones and between threads.

    Args:
        folder: What `build` made.

    Attributes:
        folder: It.
        skipped: The malformed rows that were left out.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.skipped = Skipped(**json.loads((folder / SKIPPED).read_text(encoding="utf-8")))
        self._starts: np.ndarray = np.load(folder / STARTS, mmap_mode="r")
        self._bounds: np.ndarray = np.load(folder / BOUNDS, mmap_mode="r")

    @classmethod
    def build(cls, files: Sequence[Path], cache: Path, *, strict: bool = True) -> QuestionGroups:
        """Read question files once and keep where the rows of each group are.

        Args:
            files: `.jsonl` or `.jsonl.gz` files.
            cache: Folder that keeps a copy of the rows, decompressed, under a name made of the files' names, sizes and
                times of change and of `strict`; a later call with the same files finds it there.
            strict: Whether a malformed row is an error. Otherwise it is left out, counted, and the log says so.
        Returns:
            The groups.
        Raises:
            DataError: If a file is missing, or `strict` and a row is malformed; the row is named.
        """
        name = "\n".join([str(FORMAT), str(strict), *describe_files(files)])
        folder = cache / f"questions-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        if not folder.exists():
            cache.mkdir(parents=True, exist_ok=True)
            _build(folder, files, strict)
        groups = cls(folder)
        warn_of_skipped(", ".join(path.name for path in files), groups.skipped)
        return groups

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> list[Question]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[Question]]: ...
    def __getitem__(self, index: int | slice) -> list[Question] | list[list[Question]]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        at = range(len(self))[index]
        return [self._question(int(start)) for start in self._starts[self._bounds[at] : self._bounds[at + 1]]]

    def __reduce__(self) -> tuple[type[QuestionGroups], tuple[Path]]:
        return QuestionGroups, (self.folder,)

    @cached_property
    def _rows(self) -> mmap.mmap:
        # A map has no position that a forked process could move, as an open file has.
        with (self.folder / ROWS).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _question(self, start: int) -> Question:
        return parse_line(self._rows[start : self._rows.find(b"\n", start)])


def _build(folder: Path, files: Sequence[Path], strict: bool) -> None:
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        _write(part, files, strict)
        _move(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _move(part: Path, folder: Path) -> None:
    try:
        part.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was first, with the same content
            raise


def _write(folder: Path, files: Sequence[Path], strict: bool) -> None:
    starts, digests, skipped = array("q"), bytearray(), Skipped()
    with (folder / ROWS).open("wb") as out:
        for line, question in _all_rows(files, strict, skipped):
            starts.append(out.tell())
            digests += _group_digest(question)
            out.write(line.rstrip(b"\r\n") + b"\n")
    order, bounds = _group(np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2))
    np.save(folder / STARTS, np.array(starts, dtype=np.int64)[order])
    np.save(folder / BOUNDS, bounds)
    (folder / SKIPPED).write_text(json.dumps(asdict(skipped)), encoding="utf-8")


def _all_rows(files: Sequence[Path], strict: bool, skipped: Skipped) -> Iterator[tuple[bytes, Question]]:
    for path in files:
        yield from read_rows(path, strict=strict, skipped=skipped)


def _group_digest(question: Question) -> bytes:
    """What questions of one group have in common, in 16 bytes."""
    gold = [question.passages[index] for index in question.gold]
    return hashlib.blake2b(json.dumps(gold).encode(), digest_size=16).digest()


def _group(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring equal digests together.

    Args:
        digests: (num_rows, 2), uint64.
    Returns:
        Rows by group, (num_rows,), int64, groups by their first rows and each in the order of its rows; and the groups'
        borders in it, (num_groups + 1,), int64.
    """
    by_digest = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: the first of equal ones is the earliest row
    sorted_ = digests[by_digest]
    begins = np.ones(len(digests), dtype=bool)
    begins[1:] = (sorted_[1:] != sorted_[:-1]).any(axis=1)
    firsts = by_digest[begins]
    first_of_row = np.empty(len(digests), dtype=np.int64)
    first_of_row[by_digest] = firsts[np.cumsum(begins) - 1]
    order = np.argsort(first_of_row, kind="stable")
    _, sizes = np.unique(first_of_row, return_counts=True)
    return order, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

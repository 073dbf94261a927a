"""A validation split of a question file: rows of some articles, none of which stays among the rest."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from gmsa_rag.errors import InputError
from gmsa_rag.training.data import Skipped, read_rows
from gmsa_rag.training.files import Row
from gmsa_rag.training.question_rows import Question


def split_rows(
    path: Path, *, validation: bool, share: float = 0.05, seed: int = 0, strict: bool, skipped: Skipped
) -> Iterator[Row]:
    """One part of a question file, as it stands, a row in memory at a time.

    Questions are kept together by the titles of their gold passages, or by the passages where they have no title, so
    that a model which is chosen by the one part has not seen its articles in the other.

    Args:
        path: A `.jsonl` or `.jsonl.gz` file.
        validation: Which part: the one to choose by, or the one to train on.
        share: Of the articles that are held out for validation, above 0 and below 1.
        seed: The same seed, share and titles give the same parts, whatever file the rows are in.
        strict: Whether a malformed row is an error. Otherwise it is in neither part.
        skipped: Gets the malformed rows.
    Returns:
        The rows of the part.
    Raises:
        InputError: If the share is out of range.
        DataError: If the file is missing, or `strict` and a row is malformed; the row is named.
    """
    if not 0 < share < 1:
        raise InputError("share", expected="above 0 and below 1", got=str(share), remedy="Use 0.05 for a twentieth.")
    for line, question in read_rows(path, strict=strict, skipped=skipped):
        if held_out(question, share, seed) == validation:
            yield json.loads(line)


def held_out(question: Question, share: float, seed: int) -> bool:
    """Whether a question belongs to the validation part; see `split_rows`."""
    about = sorted({question.titles[index] or question.passages[index] for index in question.gold})
    digest = hashlib.blake2b(json.dumps([seed, about]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64

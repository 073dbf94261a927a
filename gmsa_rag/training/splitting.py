"""A validation split of a question file: rows asked of some articles, of none of which the rest is asked."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gmsa_rag.errors import InputError
from gmsa_rag.training.data import Skipped, read_rows
from gmsa_rag.training.files import Row
from gmsa_rag.training.question_rows import Question


def split_rows(
    path: Path,
    *,
    validation: bool,
    share: float = 0.05,
    seed: int = 0,
    strict: bool,
    skipped: Skipped,
    parts: Counter[bool | None] | None = None,
) -> Iterator[Row]:
    """One part of a question file, as it stands, a row in memory at a time.

    Articles are told by the titles of gold passages, or by the passages where they have no title, and each is held out
    or not: a model which is chosen by the one part has not been asked of its articles in the other. A row with gold
    passages of both kinds is in neither part.

    Args:
        path: A `.jsonl` or `.jsonl.gz` file.
        validation: Which part: the one to choose by, or the one to train on.
        share: Of the articles that are held out for validation, above 0 and below 1.
        seed: The same seed, share and titles give the same parts, whatever file the rows are in.
        strict: Whether a malformed row is an error. Otherwise it is in neither part.
        skipped: Gets the malformed rows.
        parts: Counts the rows by what `held_out` says of their questions.
    Returns:
        The rows of the part.
    Raises:
        InputError: If the share is out of range.
        DataError: If the file is missing, or `strict` and a row is malformed; the row is named.
    """
    if not 0 < share < 1:
        raise InputError("share", expected="above 0 and below 1", got=str(share), remedy="Use 0.05 for a twentieth.")
    for line, question in read_rows(path, strict=strict, skipped=skipped):
        part = held_out(question, share, seed)
        if parts is not None:
            parts[part] += 1
        if part == validation:
            yield json.loads(line)


def held_out(question: Question, share: float, seed: int) -> bool | None:
    """Whether a question belongs to the validation part, None where it belongs to neither; see `split_rows`."""
    articles = {question.titles[index] or question.passages[index] for index in question.gold}
    first, *others = {_is_held_out(article, share, seed) for article in articles}
    return None if others else first


def _is_held_out(article: str, share: float, seed: int) -> bool:
    digest = hashlib.blake2b(json.dumps([seed, [article]]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64

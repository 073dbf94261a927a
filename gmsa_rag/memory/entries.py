"""Entry and Hit: a row of the vector index, and one that a search found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gmsa_rag.errors import InputError
from gmsa_rag.memory.flat import Floats
from gmsa_rag.memory.keys import encode_text


@dataclass(frozen=True)
class Entry:
    """A row of the index.

    Attributes:
        id: Its name, unique in the namespace.
        text: The text that was embedded.
        metadata: A JSON object.
        vector: The vector as it was added, (dimension,), float32; not compared by ==.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    vector: Floats = field(compare=False, repr=False)


@dataclass(frozen=True)
class Hit:
    """A row found by a search.

    Attributes:
        entry: The row.
        score: Cosine similarity in [-1, 1]; higher is closer.
    """

    entry: Entry
    score: float


def check_id(name: str) -> str:
    """The id itself; InputError unless it is a text that is not empty."""
    if not encode_text(name, "id"):
        raise InputError("id", expected="a name", got="an empty one", remedy="Pass None for random ids.")
    return name


def check_counts(expected: int, **counts: int) -> None:
    """Raise InputError unless there are as many of each as there are texts."""
    for name, count in counts.items():
        if count != expected:
            got, remedy = f"{count} for {expected} texts", "Pass them in the same order."
            raise InputError(name, expected="one for each text", got=got, remedy=remedy)

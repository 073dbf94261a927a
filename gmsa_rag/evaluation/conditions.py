"""Conditions: what stands for a question's passages in its prompt."""

import random
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

from gmsa_rag.errors import InputError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Part
from gmsa_rag.memory.memory import Memory
from gmsa_rag.training.data import Question

CONDITIONS = ("memories", "other_memories", "truncated_text", "closed_book", "full_text")
RATED = ("memories", "other_memories", "truncated_text")
CITING = ("memories", "truncated_text", "full_text")
COMPRESS_CHUNK = 512


def compress_distinct(gmsa: GMSA, texts: Sequence[str], rate: int) -> dict[str, Memory]:
    """A memory for each distinct text, computed once."""
    distinct = list(dict.fromkeys(texts))
    memories: dict[str, Memory] = {}
    for start in range(0, len(distinct), COMPRESS_CHUNK):
        chunk = distinct[start : start + COMPRESS_CHUNK]
        memories.update(zip(chunk, gmsa.compress(chunk, rate), strict=True))
    return memories


def choose_passages(
    condition: str, question: Question, other: Sequence[str], memories: Mapping[str, Memory]
) -> list[Part]:
    """What stands for a question's passages in a condition; for truncated text the memories it is measured by."""
    if condition == "closed_book":
        return []
    if condition == "full_text":
        return list(question.passages)
    return [memories[text] for text in (other if condition == "other_memories" else question.passages)]


def other_passages(questions: Sequence[Question], seed: int) -> list[tuple[str, ...]]:
    """For each question as many passages of another one, none of them its own, and of other titles where there are.

    Raises:
        InputError: If all questions share passages.
    """
    groups = list(dict.fromkeys((q.passages, q.titles) for q in questions))
    random.Random(seed).shuffle(groups)
    chosen = {group: _other_group(groups, at) for at, group in enumerate(groups)}
    return [tuple(islice(cycle(chosen[q.passages, q.titles]), len(q.passages))) for q in questions]


def check_conditions(conditions: Sequence[str], known: Sequence[str], rates: Sequence[int]) -> None:
    """Raise InputError unless there are conditions, all of them known, and rates where they need any."""
    if not conditions or (unknown := sorted(set(conditions) - set(known))):
        raise InputError(
            "conditions", expected=f"some of {', '.join(known)}", got=str(unknown if conditions else []),
            remedy="Choose among them.",
        )  # fmt: skip
    if not rates and set(conditions) & set(RATED):
        raise InputError("rates", expected="at least one", got="none", remedy="Name the rates to compress at.")


def _other_group(groups: Sequence[tuple[tuple[str, ...], tuple[str, ...]]], at: int) -> tuple[str, ...]:
    """Passages of the next group that shares none; one that shares no title first."""
    passages, titles = map(set, groups[at])
    foreign: tuple[str, ...] | None = None
    for other, named in [*groups[at + 1 :], *groups[:at]]:
        if other and passages.isdisjoint(other):
            if titles.isdisjoint(named):
                return other
            foreign = foreign or other
    if foreign is None:
        raise InputError(
            "questions",
            expected="some of other passages, for the condition other_memories",
            got="all of the same ones",
            remedy="Ask more questions, or leave the condition out.",
        )
    return foreign

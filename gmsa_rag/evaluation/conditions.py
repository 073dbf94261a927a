"""Conditions: what stands for a question's passages in its prompt."""

import random
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.selection import Pool
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Part
from gmsa_rag.memory.memory import Memory
from gmsa_rag.training.data import Question

CONDITIONS = ("memories", "other_memories", "truncated_text", "closed_book", "full_text")
RATED = ("memories", "other_memories", "truncated_text")
CITING = ("memories", "truncated_text", "full_text")
COMPRESS_CHUNK = 512
Group = tuple[tuple[str, ...], tuple[str, ...]]  # passages and their titles


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


def other_passages(questions: Sequence[Question], seed: int, pool: Pool | None = None) -> list[tuple[str, ...]]:
    """For each question as many passages of another one, none of them its own, and of other titles where there are.

    Args:
        questions: Those to ask.
        seed: Of the draws.
        pool: Where passages are drawn from if no other question has any that can stand in; None for nowhere.

    Raises:
        InputError: If no passage can stand in for a question's.
    """
    groups = list(dict.fromkeys((q.passages, q.titles) for q in questions))
    random.Random(seed).shuffle(groups)
    chosen = {group: _other_group(groups, at) or _from_pool(group, pool, seed) for at, group in enumerate(groups)}
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


def _other_group(groups: Sequence[Group], at: int) -> tuple[str, ...]:
    """Passages of the next group that shares none; one that shares no title first; none if there is no such group."""
    passages, titles = map(set, groups[at])
    foreign: tuple[str, ...] = ()
    for other, named in [*groups[at + 1 :], *groups[:at]]:
        if other and passages.isdisjoint(other):
            if titles.isdisjoint(named):
                return other
            foreign = foreign or other
    return foreign


def _from_pool(group: Group, pool: Pool | None, seed: int) -> tuple[str, ...]:
    passages, titles = group
    found = pool.others(passages, titles, random.Random(f"{seed} {passages}")) if pool else []
    if not found:
        raise InputError(
            "questions",
            expected="passages that are not a question's own, for the condition other_memories",
            got=f"one that has all {len(set(passages))} there are",
            remedy="Take a file with more passages, select fewer for a question, or leave other_memories out of the "
            "conditions.",
        )
    return tuple(found)

"""Selection: which passages questions are asked of, and what they are without those that hold the answer."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TypeVar

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.metrics import cover_match, mean
from gmsa_rag.evaluation.retrieved import retrieve
from gmsa_rag.memory.embedding import MINILM, Embedder, load_embedder
from gmsa_rag.training.data import Question

PASSAGES = ("given", "gold", "distractors", "retrieved")
Titled = tuple[str, str]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Selection:
    """Questions with the passages that were selected for them.

    Attributes:
        questions: Those to ask.
        pool: Passages of all questions there were.
        label: The selection in words, such as "retrieved 4 by minilm".
        gold_recall: Share of a question's gold passages that were retrieved, the mean over the questions; None where
            nothing was retrieved.
    """

    questions: list[Question]
    pool: "Pool"
    label: str
    gold_recall: float | None = None


class Pool:
    """The distinct passages of some questions, each under the title it came with first.

    Args:
        questions: Those they belong to.
        seed: Of the order in which passages of other titles are drawn.
    """

    def __init__(self, questions: Sequence[Question], seed: int) -> None:
        self.titles: dict[str, str] = {}
        for question in questions:
            for title, text in zip(question.titles, question.passages, strict=True):
                self.titles.setdefault(text, title)
        self.texts = list(self.titles)
        self._mixed = random.Random(seed).sample(self.texts, len(self.texts))
        self._by_title: dict[str, list[str]] = {}
        for text, title in self.titles.items():
            self._by_title.setdefault(title, []).append(text)

    def distractors(self, question: Question, count: int, rng: random.Random) -> list[Titled]:
        """Passages that hold none of a question's answers: its own first, then of its gold ones' titles, then any.

        Args:
            question: The question.
            count: Passages, >= 1.
            rng: Draws among equals.

        Returns:
            Title and text of each, all different.

        Raises:
            InputError: If there are too few.
        """
        found = list(islice(self._foreign(question, rng), count))
        if len(found) < count:
            raise InputError(
                "questions", expected=f"{count} passages without an answer to {question.question!r}",
                got=str(len(found)), remedy="Choose fewer passages, or ask more questions.",
            )  # fmt: skip
        return found

    def others(self, passages: Sequence[str], titles: Sequence[str], rng: random.Random) -> list[str]:
        """Passages that are none of some, those of other titles first.

        Args:
            passages: What to leave out.
            titles: Their titles.
            rng: Draws where to begin.

        Returns:
            As many different passages as are left out, or all there are.
        """
        start, own, named = rng.randrange(len(self._mixed) or 1), set(passages), set(titles)
        left = [text for text in chain(self._mixed[start:], self._mixed[:start]) if text not in own]
        left.sort(key=lambda text: self.titles[text] in named)  # stable
        return left[: len(passages)]

    def _foreign(self, question: Question, rng: random.Random) -> Iterator[Titled]:
        gold = {question.passages[index] for index in question.gold}
        titles = dict.fromkeys(question.titles[index] for index in question.gold if question.titles[index])
        akin = [text for title in titles for text in self._by_title.get(title, ())]
        # From a random place of an order that is random: as good as a draw, and as fast for a pool of any size.
        start = rng.randrange(len(self._mixed))
        seen = set(gold)
        for text in chain(
            _shuffled(question.passages, rng), _shuffled(akin, rng), self._mixed[start:], self._mixed[:start]
        ):
            if text not in seen and not cover_match(text, question.answers):
                yield self.titles[text], text
            seen.add(text)


def select_passages(
    questions: Sequence[Question], kind: str = "given", *, k: int = 4, embedder: Embedder | str = MINILM,
    limit: int | None = None, seed: int = 0,
) -> Selection:  # fmt: skip
    """Draw questions, and select what they are asked of.

    Args:
        questions: All there are; other passages come from them.
        kind: "given", all passages of a question; "gold", those that hold the answer; "distractors", these among `k`
            that do not; "retrieved", the `k` of all questions' distinct passages that are closest to the question.
        k: Passages to add or to retrieve, >= 1.
        embedder: The embedding model for "retrieved", or its name as `load_embedder` takes it.
        limit: Select for this many, drawn at random; None takes all.
        seed: Of all draws.

    Raises:
        InputError: If there are no questions, the kind is unknown, or there are too few passages.
        DependencyError: If the package that carries "minilm" is missing.
        CheckpointError: If the embedding model cannot be read.
    """
    _check(questions, kind, k, limit)
    asked = list(questions)
    if limit is not None:
        asked = random.Random(seed).sample(asked, min(limit, len(asked)))
    pool = Pool(questions, seed)
    if kind == "given":
        return Selection(asked, pool, kind)
    if kind == "gold":
        return Selection([_of(question, _gold(question)) for question in asked], pool, kind)
    if kind == "distractors":
        return Selection([_among(question, pool, k, seed) for question in asked], pool, f"gold among {k} others")
    return _retrieve(asked, pool, k, embedder)


def without_answer(question: Question, pool: Pool, seed: int) -> Question:
    """The question without its gold passages, and without others that hold an answer.

    Where no passage is left, another one that holds no answer stands in: no passages at all would be no question of
    reading.
    """
    own = zip(question.titles, question.passages, strict=True)
    gold = set(_gold(question))
    left = [pair for pair in own if pair not in gold and not cover_match(pair[1], question.answers)]
    return _of(question, left or pool.distractors(question, 1, _rng(question, seed)))


def _retrieve(asked: Sequence[Question], pool: Pool, k: int, embedder: Embedder | str) -> Selection:
    if k > len(pool.texts):
        raise InputError(
            "k", expected=f"at most {len(pool.texts)}, as many as there are passages", got=str(k), remedy="Lower it."
        )
    name = embedder if isinstance(embedder, str) else type(embedder).__name__
    model = load_embedder(embedder) if isinstance(embedder, str) else embedder
    found = retrieve(pool.texts, [question.question for question in asked], k, model)
    selected = [
        _of(question, [(pool.titles[pool.texts[at]], pool.texts[at]) for at in indices])
        for question, indices in zip(asked, found, strict=True)
    ]
    recall = mean([len(s.gold) / len({q.passages[at] for at in q.gold}) for q, s in zip(asked, selected, strict=True)])
    return Selection(selected, pool, f"retrieved {k} by {name}", recall)


def _among(question: Question, pool: Pool, k: int, seed: int) -> Question:
    """A question's gold passages and distractors, in random order."""
    rng = _rng(question, seed)
    return _of(question, _shuffled([*_gold(question), *pool.distractors(question, k, rng)], rng))


def _gold(question: Question) -> list[Titled]:
    return [(question.titles[index], question.passages[index]) for index in question.gold]


def _of(question: Question, passages: Sequence[Titled]) -> Question:
    """The question asked of other passages; those of its gold texts among them are its gold ones."""
    gold = {text for _, text in _gold(question)}
    titles, texts = tuple(title for title, _ in passages), tuple(text for _, text in passages)
    indices = tuple(index for index, text in enumerate(texts) if text in gold)
    return replace(question, titles=titles, passages=texts, gold=indices)


def _rng(question: Question, seed: int) -> random.Random:
    return random.Random(f"{seed} {question.question}")


def _shuffled(items: Sequence[Item], rng: random.Random) -> list[Item]:
    return rng.sample(list(items), len(items))


def _check(questions: Sequence[Question], kind: str, k: int, limit: int | None) -> None:
    if not questions or (limit is not None and limit < 1):
        raise InputError(
            "questions", expected="at least one", got=f"{len(questions)}, limit {limit}", remedy="Ask some."
        )
    if kind not in PASSAGES:
        raise InputError("passages", expected=f"one of {', '.join(PASSAGES)}", got=kind, remedy="Choose one.")
    if k < 1:
        raise InputError("k", expected="at least 1", got=str(k), remedy="Choose how many passages to add or retrieve.")

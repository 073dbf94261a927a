"""What is asked of a memory in training: restore it, go on from it, find a quote in it, fill a blank, answer."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import ConfigError, DataError
from gmsa_rag.inference.prompt import passage_frame
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.training.cloze import as_question, make_cloze, sentences, shorten, thin
from gmsa_rag.training.data import Question
from gmsa_rag.training.examples import Example, Passage, Segment, num_positions
from gmsa_rag.training.templates import CLOZE_PROMPTS, QUOTE_PROMPTS, Wording, draw_wording
from gmsa_rag.training.tokenizer import ASSISTANT, USER

Ids = list[int]
OWN_WORDING, UNTITLED, SHORTENED, FURTHER_TURNS, AHEAD = 0.5, 0.3, 0.5, 4, 32
TOKENS_A_WORD = 1.5


@dataclass
class Tasks:
    """Draws examples of every task.

    Attributes:
        codec: The tokenizer.
        config: The checkpoint's templates.
        stream: Token stream of the corpus, documents ended by the tokenizer's end token.
        rates: Rates to draw from.
        windows: Shortest and longest passage in tokens.
        questions: Questions by passage, from `group_questions`.
        full_text: Share of question prompts with text in the place of memories.
        max_positions: Longest example.
    """

    codec: TokenCodec
    config: GMSAConfig
    stream: np.ndarray
    rates: Sequence[int]
    windows: tuple[int, int]
    questions: Sequence[Sequence[Question]] = ()
    full_text: float = 0.0
    max_positions: int = 768

    def __post_init__(self) -> None:
        least = self.windows[1] + AHEAD
        if len(self.stream) <= least:
            raise DataError(
                "corpus",
                expected=f"more than {least} tokens",
                got=str(len(self.stream)),
                remedy="Name more text files.",
            )

    @cached_property
    def _user(self) -> int:
        return self.codec.control_id(USER)

    @cached_property
    def _assistant(self) -> int:
        return self.codec.control_id(ASSISTANT)

    def draw(self, weights: dict[str, float]) -> Callable[[random.Random], Example]:
        """A function that draws an example by the tasks' weights.

        Raises:
            ConfigError: If a task is unknown.
        """
        known = {"restore", "continue", "quote", "cloze", "question"}
        if unknown := set(weights) - known:
            raise ConfigError(
                "tasks", expected=str(sorted(known)), got=str(sorted(unknown)), remedy="Change the recipe."
            )
        if weights.get("question") and not self.questions:
            raise ConfigError(
                "task question", expected="question files", got="none", remedy="Train it in KEFT, with questions."
            )
        makers = [getattr(self, f"_{name}") for name in weights]
        return lambda rng: rng.choices(makers, list(weights.values()))[0](rng)

    def _restore(self, rng: random.Random) -> Example:
        ids = self._span(rng, self._size(rng))
        before, after = self.config.restore_template.split("{memory}")
        return [
            Segment(self.codec.prefix + self._text(before)),
            Passage(ids, rng.choice(self.rates)),
            Segment(self._text(after)),
            Segment([*ids, self.codec.end], learn=True),
        ]

    def _continue(self, rng: random.Random) -> Example:
        ids = self._span(rng, self._size(rng) + AHEAD)
        head = Passage(ids[:-AHEAD], rng.choice(self.rates))
        return [Segment(self.codec.prefix), head, Segment(ids[-AHEAD:], learn=True)]

    def _quote(self, rng: random.Random) -> Example:
        ids = self._span(rng, max(self._size(rng), 40))
        turns = []
        for _ in range(rng.randint(1, FURTHER_TURNS)):
            start = rng.randrange(len(ids) - 24)
            size = rng.randint(3, 8)
            quoted = self.codec.decode(ids[start : start + size]).strip()
            if "\ufffd" not in quoted:  # a character cut in two cannot be quoted
                follows = ids[start + size : start + size + rng.randint(6, 16)]
                turns.append((rng.choice(QUOTE_PROMPTS).format(text=quoted), [*follows, self.codec.end]))
        return self._turns(Passage(ids, rng.choice(self.rates)), turns) if turns else self._restore(rng)

    def _cloze(self, rng: random.Random) -> Example:
        ids = self._span(rng, self._size(rng))
        found = [make_cloze(s, rng) for s in sentences(self.codec.decode(ids))[:-1] if 5 <= len(s.split()) <= 45]
        clozes = [c for c in found if c is not None]
        if not clozes:
            return self._quote(rng)
        turns = []
        for cloze in rng.sample(clozes, min(len(clozes), FURTHER_TURNS)):
            asked = rng.random()
            if asked < 0.45:
                share = rng.choice((0.0, rng.uniform(0, 0.4)))  # half of them whole: what is easiest to find
                prompt = rng.choice(CLOZE_PROMPTS).format(text=thin(cloze.text, share, rng))
            else:
                question = as_question(cloze, rng)
                prompt = "Question: " + (thin(question, rng.uniform(0, 0.3), rng) if asked < 0.7 else question)
            turns.append((prompt, self._answer(cloze.answer)))
        return self._turns(Passage(ids, rng.choice(self.rates)), turns)

    def _question(self, rng: random.Random) -> Example:
        group = rng.choice(self.questions)
        first = rng.choice(group)
        passages, gold = self._passages(first, rng)
        own = rng.random() < OWN_WORDING
        wording = self._own_wording() if own else draw_wording(rng)
        cite = f" [{gold + 1}]" if own and self.config.cites else ""
        example = self._first_turn(wording, passages, first, cite, rng.random() < self.full_text, rng)
        if wording.chat:
            others = [q for q in group if q is not first and q.answers[0] in passages[gold][1]]
            for question in rng.sample(others, min(len(others), rng.randint(0, FURTHER_TURNS))):
                asks = [self._user, *self._text(f"Question: {question.question}"), self._assistant]
                example += [Segment(asks), Segment(self._answer(question.answers[0] + cite), learn=True)]
        return example if num_positions(example) <= self.max_positions else self._cloze(rng)

    def _first_turn(
        self, wording: Wording, passages: list[tuple[str, str]], asked: Question, cite: str, as_text: bool,
        rng: random.Random,
    ) -> list[Segment | Passage]:  # fmt: skip
        """The prompt of a wording, and its answer."""
        pieces: list[str | Passage] = []
        head, tail = wording.prompt.format(passages="\0", question=asked.question).split("\0")
        pieces.append(head)
        for number, (title, text) in enumerate(passages, 1):
            named = "" if rng.random() < UNTITLED else title
            before, after = passage_frame(wording.passage, number, named)
            memory = text if as_text else Passage(self.codec.encode([text])[0], rng.choice(self.rates))
            pieces += [before, memory, after]
        parts = self._join([*pieces, tail])
        start = [*self.codec.prefix, self._user] if wording.chat else self.codec.prefix
        closing = [Segment([self._assistant])] if wording.chat else []
        return [Segment(start), *parts, *closing, Segment(self._answer(asked.answers[0] + cite), learn=True)]

    def _join(self, pieces: Sequence[str | Passage]) -> list[Segment | Passage]:
        """Tokenise runs of text as one, as inference does."""
        parts: list[Segment | Passage] = []
        text = ""
        for piece in pieces:
            if isinstance(piece, str):
                text += piece
                continue
            parts += [Segment(self._text(text)), piece]
            text = ""
        return [*parts, Segment(self._text(text))]

    def _turns(self, passage: Passage, turns: Sequence[tuple[str, Ids]]) -> Example:
        """Several questions of one memory, each a turn, so that it is read once for all."""
        example: list[Segment | Passage] = [Segment([*self.codec.prefix, self._user]), passage]
        for index, (prompt, answer) in enumerate(turns):
            opening = [self._user] if index else self._text("\n")
            example.append(Segment([*opening, *self._text(prompt), self._assistant]))
            example.append(Segment(answer, learn=True))
        return example

    def _answer(self, text: str) -> Ids:
        """An answer's tokens. It starts with a space, as words within passages do: easier to copy."""
        return [*self._text(" " + text), self.codec.end]

    def _passages(self, question: Question, rng: random.Random) -> tuple[list[tuple[str, str]], int]:
        """Titles and texts, shuffled, and which is the gold one; others only where windows are as long as they get."""
        at = question.gold[0]
        title, text = question.titles[at], question.passages[at]
        last = self.windows[1] >= self.config.window
        if not last or rng.random() < SHORTENED:
            text = shorten(text, question.answers[0], self._size(rng) // TOKENS_A_WORD, rng)
        others = [
            pair for pair in zip(question.titles, question.passages, strict=True) if pair[1] != question.passages[at]
        ]
        chosen = rng.sample(others, min(len(others), rng.randint(0, 4))) if last else []
        gold = rng.randint(0, len(chosen))
        return [*chosen[:gold], (title, text), *chosen[gold:]], gold

    def _own_wording(self) -> Wording:
        _, _, template = self.config.answer_template.rpartition(USER)
        return Wording(self.config.passage_template, template.removesuffix(ASSISTANT))

    def _size(self, rng: random.Random) -> int:
        """Tokens of a passage; shorter ones come more often."""
        return min(rng.randint(*self.windows), rng.randint(*self.windows))

    def _span(self, rng: random.Random, size: int) -> Ids:
        """Tokens of one document, from a random place on."""
        for _ in range(64):
            start = rng.randrange(len(self.stream) - size)
            span = self.stream[start : start + size]
            if not (span == self.codec.end).any():
                break
        return [int(i) for i in span]

    def _text(self, text: str) -> Ids:
        ids: Ids = []
        for piece, control in self.codec.split_control(text):
            ids += [self.codec.control_id(piece)] if control else self.codec.encode([piece])[0]
        return ids


def group_questions(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions that share their passages, together."""
    groups: dict[tuple[str, ...], list[Question]] = {}
    for question in questions:
        groups.setdefault((*question.passages, str(question.gold)), []).append(question)
    return list(groups.values())

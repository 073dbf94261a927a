"""What is asked of a memory in training: restore it, go on from it, find a quote in it, fill a blank, answer."""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import ConfigError, DataError
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.training.cloze import as_question, make_cloze, sentences, shorten, thin
from gmsa_rag.training.data import Question
from gmsa_rag.training.examples import Example, Passage, Segment, num_positions
from gmsa_rag.training.frames import frame_of
from gmsa_rag.training.prompts import AskedPassage, QuestionPrompts
from gmsa_rag.training.templates import CLOZE_PROMPTS, QUOTE_PROMPTS

logger = logging.getLogger(__name__)
Ids = list[int]
FURTHER_TURNS, DISTRACTORS, AHEAD = 8, 4, 32
ROOM = 64  # for the question and the answer of a further turn
QUOTED = 24  # a quote and what follows it
TRIES = 64
TOKENS_A_WORD = 1.5
# After so many questions it is told if more than this share of them was too long to train on.
COUNTED, MUCH = 500, 0.05


@dataclass
class Tasks:
    """Draws examples of every task.

    Attributes:
        codec: The tokenizer.
        config: The checkpoint's templates.
        stream: Token stream of the corpus, documents ended by the tokenizer's end token.
        rates: Rates to draw from.
        windows: Shortest and longest passage in tokens.
        questions: Questions by passage, as `QuestionGroups` has them.
        full_text: Share of question prompts with text in the place of all memories.
        mixed: Share of passages, in the other prompts, that stay text beside memories.
        unanswerable: Share of question prompts whose gold passage is taken out; the answer is the config's no_answer.
        refine: Share of question prompts worded as a refinement of an earlier answer.
        max_positions: Longest example.
        distractors: Share of the questions without wrong passages of their own that get some of other questions.
        own_wording: Share of question prompts in the checkpoint's own wording.
        whole_passages: Share of the questions that are asked of whole passages, the others of the few sentences that
            hold their answers. With 0 the wrong passages that their rows name are left out.
        noise: Share of a restoration's tokens that the decoder reads as others of the passage. In use it reads its own
            words, wrong ones among them, and has to find its place in the memory again after each.
    """

    codec: TokenCodec
    config: GMSAConfig
    stream: np.ndarray
    rates: Sequence[int]
    windows: tuple[int, int]
    questions: Sequence[Sequence[Question]] = ()
    full_text: float = 0.0
    mixed: float = 0.0
    unanswerable: float = 0.0
    refine: float = 0.0
    max_positions: int = 768
    distractors: float = 0.0
    noise: float = 0.0
    own_wording: float = 0.5
    whole_passages: float = 0.5
    _num_asked: int = field(default=0, init=False, compare=False)
    _num_long: int = field(default=0, init=False, compare=False)

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
    def prompts(self) -> QuestionPrompts:
        """How questions are put."""
        frame = frame_of(self.codec.tokenizer)
        return QuestionPrompts(
            self.codec, self.config, frame, self.full_text, self.mixed, self.refine, self.own_wording
        )

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
            Segment(self.codec.prefix + self.prompts.text(before)),
            Passage(ids, rng.choice(self.rates)),
            Segment(self.prompts.text(after)),
            Segment(learned := [*ids, self.codec.end], learn=True, read=self._misread(learned, rng)),
        ]

    def _misread(self, ids: Ids, rng: random.Random) -> Ids | None:
        """The tokens, a share of them in the place of others; None where that share is 0."""
        return [rng.choice(ids) if rng.random() < self.noise else token for token in ids] if self.noise else None

    def _continue(self, rng: random.Random) -> Example:
        ids = self._span(rng, self._size(rng) + AHEAD)
        at = len(ids) - AHEAD if len(ids) > AHEAD else len(ids) // 2
        return [Segment(self.codec.prefix), Passage(ids[:at], rng.choice(self.rates)), Segment(ids[at:], learn=True)]

    def _quote(self, rng: random.Random) -> Example:
        ids = self._span(rng, max(self._size(rng), 40))
        turns = []
        for _ in range(rng.randint(1, FURTHER_TURNS) if len(ids) > QUOTED else 0):
            start = rng.randrange(len(ids) - QUOTED)
            size = rng.randint(3, 8)
            quoted = self.codec.decode(ids[start : start + size]).strip()
            if "\ufffd" not in quoted:  # a character cut in two cannot be quoted
                follows = ids[start + size : start + size + rng.randint(6, 16)]
                turns.append((rng.choice(QUOTE_PROMPTS).format(text=quoted), [*follows, self.codec.end]))
        return self.prompts.turns(Passage(ids, rng.choice(self.rates)), turns) if turns else self._restore(rng)

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
            turns.append((prompt, self.prompts.answer(cloze.answer)))
        return self.prompts.turns(Passage(ids, rng.choice(self.rates)), turns)

    def _question(self, rng: random.Random) -> Example:
        group = rng.choice(self.questions)
        asked = rng.choice(group)
        passages, gold = self._passages(asked, rng)
        answer = asked.answers[0]
        emptied = bool(self.config.no_answer) and rng.random() < self.unanswerable
        if emptied and (left := self._without_gold(asked, passages, gold, rng)):
            passages, gold, answer = left, None, self.config.no_answer
        wrong = rng.choice(rng.choice(self.questions)).answers[0]
        example, goes_on = self.prompts.draw(
            asked.question, answer, passages, gold, wrong, lambda: rng.choice(self.rates), rng
        )
        if goes_on and gold is not None:
            others = [q for q in group if q is not asked and q.answers[0] in passages[gold].text]
            cite = f" [{gold + 1}]"
            cited = cite if self._ends_with(example, cite) else ""
            for question in rng.sample(others, min(len(others), FURTHER_TURNS)):
                if num_positions(example) + ROOM <= self.max_positions:
                    example += self.prompts.further_turn(question.question, question.answers[0] + cited)
        fits = num_positions(example) <= self.max_positions
        self._count(fits)
        return example if fits else self._cloze(rng)

    def _count(self, fits: bool) -> None:
        """Tell once if many questions are replaced, in each process that draws."""
        self._num_asked, self._num_long = self._num_asked + 1, self._num_long + (not fits)
        if self._num_asked == COUNTED and self._num_long > MUCH * COUNTED:
            logger.warning(
                "%d of %d question prompts were longer than max_positions %d, and clozes took their place: "
                "raise max_positions or the rates", self._num_long, COUNTED, self.max_positions,
            )  # fmt: skip

    def _ends_with(self, example: Example, cite: str) -> bool:
        """Whether the answer of a first turn names its passage."""
        last = example[-1]
        return isinstance(last, Segment) and self.codec.decode(last.ids).endswith(cite)

    def _passages(self, question: Question, rng: random.Random) -> tuple[list[AskedPassage], int | None]:
        """Passages, shuffled, and which holds the answer; the row's own others only where some passages are whole."""
        holding = [index for index in question.gold if question.answers[0] in question.passages[index]]
        at = (holding or question.gold)[0]
        text = question.passages[at]
        if rng.random() >= self.whole_passages:
            text = shorten(text, question.answers[0], self._size(rng) // TOKENS_A_WORD, rng)
        pairs = [AskedPassage(*pair) for pair in zip(question.titles, question.passages, strict=True)]
        needed = [pairs[index] for index in question.gold if index != at]
        others = [pair for pair in pairs if pair not in needed and pair.text != question.passages[at]]
        count = min(len(others), rng.randint(0, DISTRACTORS))
        chosen = needed + rng.sample(others, count) if self.whole_passages else []
        if self.distractors and not chosen and rng.random() < self.distractors:
            borrowed = (self._borrowed(question, rng, tries=1) for _ in range(rng.randint(1, DISTRACTORS)))
            chosen = [passage for passage in borrowed if passage]
        rng.shuffle(chosen)
        gold = rng.randint(0, len(chosen))
        return [*chosen[:gold], AskedPassage(question.titles[at], text), *chosen[gold:]], gold

    def _without_gold(
        self, asked: Question, passages: list[AskedPassage], gold: int | None, rng: random.Random
    ) -> list[AskedPassage]:
        """The prompt's passages that hold no answer; where none is left one of another question, if any is found."""
        left = [p for index, p in enumerate(passages) if index != gold and not _holds_answer(p, asked)]
        borrowed = None if left else self._borrowed(asked, rng)
        return [borrowed] if borrowed else left

    def _borrowed(self, asked: Question, rng: random.Random, tries: int = TRIES) -> AskedPassage | None:
        """A passage of another question, shortened, that holds no answer to this one; None where none is found."""
        for _ in range(tries):
            other = rng.choice(rng.choice(self.questions))
            text = shorten(other.passages[0], other.answers[0], self._size(rng) // TOKENS_A_WORD, rng)
            passage = AskedPassage(other.titles[0], text)
            if other.passages[0] not in asked.passages and not _holds_answer(passage, asked):
                return passage
        return None

    def _size(self, rng: random.Random) -> int:
        """Tokens of a passage; shorter ones come more often."""
        return min(rng.randint(*self.windows), rng.randint(*self.windows))

    def _span(self, rng: random.Random, size: int) -> Ids:
        """Tokens of one document, from a random place on; fewer where the documents around are shorter."""
        for _ in range(TRIES):
            start = rng.randrange(len(self.stream) - size)
            span = self.stream[start : start + size]
            ends = np.flatnonzero(span == self.codec.end)
            if not ends.size:
                return [int(i) for i in span]
        pieces = np.split(span, ends)
        return [int(i) for i in max((piece[piece != self.codec.end] for piece in pieces), key=len)]


def _holds_answer(passage: AskedPassage, asked: Question) -> bool:
    """Whether a passage or its title holds an accepted answer, in any case of letters."""
    text = f"{passage.title}\n{passage.text}".lower()
    return any(answer.lower() in text for answer in asked.answers)


def group_questions(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions that share their gold passages, together: the plain reference beside `QuestionGroups`, in memory."""
    groups: dict[tuple[str, ...], list[Question]] = {}
    for question in questions:
        groups.setdefault(tuple(question.passages[index] for index in question.gold), []).append(question)
    return list(groups.values())

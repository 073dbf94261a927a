"""Question prompts to train on: passages as memories or text, in many wordings, each as inference would send it."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gmsa_rag.config import GMSAConfig
from gmsa_rag.inference.prompt import Verbatim, tokenise, tokenise_pieces
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.training.examples import Example, Passage, Segment
from gmsa_rag.training.frames import Frame, lay_out
from gmsa_rag.training.templates import REFINE_WORDINGS, RefineWording, Wording, draw_wording

Ids = list[int]
UNTITLED, EARLIER_ANSWER_RIGHT = 0.3, 0.5


class AskedPassage(NamedTuple):
    """A passage in a prompt."""

    title: str
    text: str


@dataclass(frozen=True)
class QuestionPrompts:
    """Builds the prompts.

    Attributes:
        codec: The tokenizer.
        config: The checkpoint's templates.
        frame: Of the tokenizer's chat template.
        full_text: Share of prompts with text in the place of all memories.
        mixed: Share of passages, in the other prompts, that stay text beside memories.
        refine: Share of prompts worded as a refinement of an earlier answer.
        own_wording: Share of the others in the checkpoint's own wording.
    """

    codec: TokenCodec
    config: GMSAConfig
    frame: Frame
    full_text: float = 0.0
    mixed: float = 0.0
    refine: float = 0.0
    own_wording: float = 0.5

    def draw(
        self, question: str, answer: str, passages: Sequence[AskedPassage], gold: int | None, wrong: str,
        rate: Callable[[], int], rng: random.Random,
    ) -> tuple[list[Segment | Passage], bool]:  # fmt: skip
        """A prompt in some wording and its answer.

        Args:
            question: What is asked.
            answer: What is to be said.
            passages: What it is asked of.
            gold: Index of the passage that holds the answer, None if none does.
            wrong: Another answer, for a refinement to mend.
            rate: Draws the rate of a passage.
            rng: Where all randomness comes from.

        Returns:
            The example, and whether further turns may follow it.
        """
        if rng.random() < self.refine:
            return self._refinement(question, answer, passages, gold, wrong, rate, rng), False
        own = rng.random() < self.own_wording
        wording = self.own() if own else draw_wording(rng)
        cite = f" [{gold + 1}]" if own and self.config.cites and gold is not None else ""
        return self.first_turn(wording, question, answer + cite, passages, rate, rng), own or wording.chat

    def own(self) -> Wording:
        """The checkpoint's own wording: its template holds the control tokens of its frame."""
        return Wording(self.config.passage_template, self.config.answer_template, chat=False)

    def first_turn(
        self, wording: Wording, question: str, answer: str, passages: Sequence[AskedPassage],
        rate: Callable[[], int], rng: random.Random,
    ) -> list[Segment | Passage]:  # fmt: skip
        """The prompt of a wording, and its answer."""
        head, tail = (_filled(part, {"{question}": question}) for part in self._laid_out(wording).split("{passages}"))
        titles = ["" if rng.random() < UNTITLED else passage.title for passage in passages]
        all_text = rng.random() < self.full_text
        pieces: list[str | Passage] = [*head]
        for passage, (before, after) in zip(passages, wording.frames(titles), strict=True):
            stays = all_text or rng.random() < self.mixed
            shown = Verbatim(passage.text) if stays else self._memory(passage, rate)
            pieces += [Verbatim(before), shown, Verbatim(after)]
        return self._answered([*pieces, *tail], answer)

    def further_turn(self, question: str, answer: str) -> list[Segment | Passage]:
        """Another question of the same passages, and its answer."""
        asks = self.text(self.frame.between, Verbatim(f"Question: {question}"), self.frame.closing)
        return [Segment(asks), Segment(self.answer(answer), learn=True)]

    def turns(self, passage: Passage, turns: Sequence[tuple[str, Ids]]) -> Example:
        """Several questions of one memory, each a turn, so that it is read once for all."""
        example = self._parts([self.frame.opening, passage])
        for index, (prompt, answer) in enumerate(turns):
            opening = self.frame.between if index else "\n"
            example.append(Segment(self.text(opening, Verbatim(prompt), self.frame.closing)))
            example.append(Segment(answer, learn=True))
        return example

    def answer(self, text: str) -> Ids:
        """An answer's tokens, as the frame starts it, and the end token."""
        return [*self.text(self.frame.before_answer, Verbatim(text)), self.codec.end]

    def text(self, *pieces: str) -> Ids:
        """Token ids of pieces of text tokenised as one; names of control tokens are these, but in `Verbatim`."""
        return [i for ids in tokenise_pieces(pieces, self.codec) if isinstance(ids, list) for i in ids]

    def _refinement(
        self, question: str, answer: str, passages: Sequence[AskedPassage], gold: int | None, wrong: str,
        rate: Callable[[], int], rng: random.Random,
    ) -> list[Segment | Passage]:  # fmt: skip
        """One passage and an earlier answer, right or wrong; where the passage does not help, it stays."""
        wording = rng.choice(REFINE_WORDINGS)
        shown = passages[gold] if gold is not None else rng.choice(passages)
        earlier = answer if gold is None or rng.random() < EARLIER_ANSWER_RIGHT else wrong
        values = {"{question}": question, "{existing_answer}": earlier}
        head, tail = (_filled(part, values) for part in self._laid_out(wording).split("{context}"))
        return self._answered([*head, self._memory(shown, rate), *tail], answer)

    def _laid_out(self, wording: Wording | RefineWording) -> str:
        """The whole prompt of a wording, its variables still in it."""
        turns = wording.turns or (("user", wording.prompt),)
        return lay_out(self.codec.tokenizer, turns) if wording.chat else wording.prompt

    def _answered(self, pieces: Sequence[str | Passage], answer: str) -> list[Segment | Passage]:
        return [*self._parts(pieces), Segment(self.answer(answer), learn=True)]

    def _parts(self, pieces: Sequence[str | Passage]) -> list[Segment | Passage]:
        """What inference makes of these pieces of a prompt."""
        return [Segment(part) if isinstance(part, list) else part for part in tokenise(pieces, self.codec)]

    def _memory(self, passage: AskedPassage, rate: Callable[[], int]) -> Passage:
        return Passage(self.codec.encode([passage.text])[0], rate())


def _filled(template: str, values: Mapping[str, str]) -> list[str]:
    """Pieces of a template, its variables' values as `Verbatim`."""
    pieces = re.split(f"({'|'.join(map(re.escape, values))})", template)
    return [Verbatim(values[piece]) if piece in values else piece for piece in pieces]

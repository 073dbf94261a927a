"""Questions made from plain text: a name, number or date is blanked, and the sentence worded as a question by rule."""

import random
import re
from dataclasses import dataclass

BLANK = "____"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
_NAME = re.compile(r"(?:[A-Z][\w'\-]+)(?:\s+(?:(?:of|the|de|von|van)\s+)?[A-Z][\w'\-]+)*")
_NUMBER = re.compile(r"\b(?:\d{1,2} )?(?:(?:January|February|March|April|May|June|July|August|September|October|"
                     r"November|December) )?(?:\d{1,2}, )?\d[\d,.]*\d\b|\b\d\b")  # fmt: skip
_PLACE_BEFORE = re.compile(r"\b(?:in|at|from|near|to)\s+(?:the\s+)?$")
_YEAR = re.compile(r"(?:1\d|20)\d\d$")
_COMMON = frozenset(
    """A According After All Also Although And As At Before Both But By During Each For From He Her His
    However I If In It Its Many Most No Not Of On One Or Other She Since Some That The Their There These They This
    Those Three To Two We When While With You""".split()  # noqa: SIM905 - readable as a list it is not
)


@dataclass(frozen=True)
class Cloze:
    """A sentence with a blank and what stood there."""

    before: str
    answer: str
    after: str

    @property
    def text(self) -> str:
        """The sentence with the blank."""
        return f"{self.before}{BLANK}{self.after}"


def sentences(text: str) -> list[str]:
    """Sentences of a text, by a rule that errs on abbreviations now and then."""
    return [sentence for line in text.split("\n") for sentence in _SENTENCE_END.split(line.strip()) if sentence]


def make_cloze(sentence: str, rng: random.Random) -> Cloze | None:
    """Blank one name, number or date of a sentence; None where it has none."""
    spans = [m.span() for m in _NUMBER.finditer(sentence)]
    spans += [m.span() for m in _NAME.finditer(sentence) if m.group().split()[0] not in _COMMON]
    spans = [(a, b) for a, b in spans if b - a <= 40]
    if not spans:
        return None
    a, b = rng.choice(spans)
    return Cloze(sentence[:a], sentence[a:b], sentence[b:])


def thin(text: str, share: float, rng: random.Random) -> str:
    """Drop a share of the words, never the blank."""
    return " ".join(word for word in text.split() if BLANK in word or rng.random() >= share)


def shorten(text: str, answer: str, words: float, rng: random.Random) -> str:
    """The sentence of a text that holds an answer, with neighbours to about so many words; the text where none does."""
    pieces = sentences(text)
    holding = [index for index, sentence in enumerate(pieces) if answer in sentence]
    if not holding:
        return text
    start = end = rng.choice(holding)
    while start > 0 or end < len(pieces) - 1:
        if sum(len(piece.split()) for piece in pieces[start : end + 1]) >= words:
            break
        if end == len(pieces) - 1 or (start > 0 and rng.random() < 0.5):
            start -= 1
        else:
            end += 1
    return " ".join(pieces[start : end + 1])


def as_question(cloze: Cloze, rng: random.Random) -> str:
    """Word the sentence as a question about what was blanked."""
    word = _question_word(cloze, rng)
    before, after = cloze.before.strip(), cloze.after.strip().rstrip(".!?;,")
    if not before:
        return f"{word} {after}?"
    if rng.random() < 0.5:  # a clause around the blank is enough to find it by
        before = re.split(r"[,;:(]\s", before)[-1]
        after = re.split(r"[,;:)]\s", after)[0] if after else after
    if rng.random() < 0.5:
        return _upper_first(f"{_lower_first(before)} {word.lower()} {after}".strip()) + "?"
    return f"{word} {rng.choice(('did', 'was', 'is', 'of', ''))} {_lower_first(before)} {after}".strip() + "?"


def _question_word(cloze: Cloze, rng: random.Random) -> str:
    if _YEAR.search(cloze.answer):
        return rng.choice(("When", "In what year", "In which year", "What year"))
    if cloze.answer[0].isdigit():
        return rng.choice(("How many", "How much", "What number"))
    if _PLACE_BEFORE.search(cloze.before):
        return rng.choice(("Where", "What place", "Which place", "What"))
    return rng.choice(("Who", "What", "Which", "Who", "What"))


def _lower_first(text: str) -> str:
    first = text.split(" ", 1)[0]
    return text[:1].lower() + text[1:] if first in _COMMON else text


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]

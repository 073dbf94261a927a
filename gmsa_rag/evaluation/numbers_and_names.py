"""Numbers and names: the words of a passage that nobody can guess, and that a restoration must not change.

A number is a run of digits with points, commas or colons inside: `1939`, `1,000`, `3.5`, `12:30`; of `18th` it is `18`.

A name is a capitalised word of two letters or more that does not begin a sentence, with the hyphens and apostrophes in
it. A sentence begins with the text, after a line break, and after one of `. ! ? : …` and white space, quotes and
brackets passed over. So a name after an abbreviation ("St. Helena") is not counted, and a capitalised common word is.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gmsa_rag.evaluation.metrics import ratio_interval

NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
# The escapes are typographic quotes.
WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
CLOSING, OPENING = r"[\"'\u201d\u2019»)\]]", r"[\s\"'\u201c\u2018\u201e«(\[]"
SENTENCE_START = re.compile(rf"(?:\A|[.!?:…]{CLOSING}*\s|\n){OPENING}*")


def numbers(text: str) -> Counter[str]:
    """Each number of a text, as it is written, and how often it occurs.

    Example:
        >>> sorted(numbers("In 1939, 1,000 of the 18th; 3.5 of 1939."))
        ['1,000', '18', '1939', '3.5']

    """
    return Counter(NUMBER.findall(text))


def names(text: str) -> Counter[str]:
    """Each capitalised word of a text that does not begin a sentence, and how often it occurs.

    Example:
        >>> sorted(names("The Danube is long. In Vienna, I met Otto Robert Frisch. Rivers flow."))
        ['Danube', 'Frisch', 'Otto', 'Robert', 'Vienna']

    """
    starts = {match.end() for match in SENTENCE_START.finditer(text)}
    found = [match for match in WORD.finditer(text) if match.start() not in starts]
    return Counter(match.group() for match in found if len(match.group()) > 1 and match.group()[0].isupper())


def words(text: str) -> Counter[str]:
    """Each word of a text and how often it occurs."""
    return Counter(WORD.findall(text))


@dataclass(frozen=True)
class Restored:
    """How many numbers or names there are in each of some texts, and how many of them are in its restoration.

    What occurs twice must be restored twice.

    Attributes:
        found: Of each text, those restored.
        totals: Of each text, all.
    """

    found: list[int]
    totals: list[int]

    @property
    def share(self) -> float | None:
        """Share that is restored over all texts together, 0 to 1; None where there is nothing to restore."""
        total = sum(self.totals)
        return sum(self.found) / total if total else None

    def interval(self, seed: int) -> tuple[float, float] | None:
        """95 % bootstrap interval of the share over texts; None with it."""
        return ratio_interval(self.found, self.totals, seed)


def numbers_restored(restored: Sequence[str], texts: Sequence[str]) -> Restored:
    """The texts' numbers, and those that are in their restorations."""
    return _count(restored, texts, numbers, numbers)


def names_restored(restored: Sequence[str], texts: Sequence[str]) -> Restored:
    """The texts' names, and those that are in their restorations, anywhere, as whole words."""
    return _count(restored, texts, names, words)


def _count(
    restored: Sequence[str], texts: Sequence[str], wanted: Callable[[str], Counter[str]],
    found: Callable[[str], Counter[str]],
) -> Restored:  # fmt: skip
    pairs = [(wanted(text), found(output)) for output, text in zip(restored, texts, strict=True)]
    return Restored([(truth & output).total() for truth, output in pairs], [truth.total() for truth, _ in pairs])

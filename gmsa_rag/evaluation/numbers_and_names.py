"""Numbers and names: the words of a passage that nobody can guess, and that a restoration must not change.

A number is a run of digits with points, commas or colons inside: `1939`, `1,000`, `3.5`, `12:30`; of `18th` it is `18`.

A name is a capitalised word of two letters or more that does not begin a sentence, with the hyphens and apostrophes in
it. A sentence begins with the text, after a line break, and after one of `. ! ? : …` and white space, quotes and
brackets passed over. So a name after an abbreviation ("St. Helena") is not counted, and a capitalised common word is.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

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


def numbers_exact(restored: Sequence[str], texts: Sequence[str]) -> float | None:
    """Share of the texts' numbers that are in their restorations, 0 to 1; see `_share`."""
    return _share(restored, texts, numbers, numbers)


def names_exact(restored: Sequence[str], texts: Sequence[str]) -> float | None:
    """Share of the texts' names that are in their restorations, anywhere, as whole words, 0 to 1; see `_share`."""
    return _share(restored, texts, names, words)


def _share(
    restored: Sequence[str], texts: Sequence[str], wanted: Callable[[str], Counter[str]],
    found: Callable[[str], Counter[str]],
) -> float | None:  # fmt: skip
    """Over all texts together; what occurs twice must be restored twice. None where there is nothing to restore."""
    pairs = [(wanted(text), found(output)) for output, text in zip(restored, texts, strict=True)]
    total = sum(truth.total() for truth, _ in pairs)
    return sum((truth & output).total() for truth, output in pairs) / total if total else None

"""Haystacks: passages nobody trained on, with one made-up sentence in them that alone answers a question."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.passages import cut_passages
from gmsa_rag.inference.tokens import TokenCodec

KINDS = ("passkey", "needle")
FIRST_NAMES = (
    "Arvo",
    "Belka",
    "Corin",
    "Dessa",
    "Emrik",
    "Fenna",
    "Gorlan",
    "Hesper",
    "Idrin",
    "Jorva",
    "Kestel",
    "Lirna",
)
LAST_NAMES = ("Ambrow", "Brenk", "Caldrey", "Dornel", "Ekvist", "Farrowin", "Grelle", "Hask", "Immerly", "Jundt")
THINGS = (
    "brass compass",
    "green lantern",
    "silver flute",
    "torn map",
    "ivory comb",
    "iron kettle",
    "blue ledger",
    "glass bell",
)
PLACE_STARTS = (
    "Tarn", "Vorr", "Quel", "Mord", "Esk", "Brav", "Ulm", "Skel", "Hald", "Jar",
    "Orv", "Pell", "Grim", "Lun", "Nesk", "Dray", "Wex", "Zand", "Ilm", "Carr",
)  # fmt: skip
PLACE_ENDS = (
    "avik", "enholt", "osta", "umar", "ingby", "ovane", "erra", "uldin", "athen", "oria",
    "edam", "isk", "antor", "ewold", "ulme", "irra", "obek", "aven", "endal", "ossa",
)  # fmt: skip
MOST_NEEDLES = len(PLACE_STARTS) * len(PLACE_ENDS)
SENTENCE_END = re.compile(r"[.!?][\"'\u201d\u2019)\]]*\s+")


@dataclass(frozen=True)
class Needle:
    """A made-up sentence and the question that it alone answers.

    Attributes:
        sentence: What is hidden in a haystack.
        question: What is asked.
        answer: What the sentence says.
    """

    sentence: str
    question: str
    answer: str


def draw_needles(kind: str, samples: int, seed: int) -> list[Needle]:
    """Make needles of different answers.

    Args:
        kind: "passkey", a number of five digits; "needle", who keeps what in which made-up place.
        samples: How many, at most `MOST_NEEDLES`.
        seed: Decides what they say.
    """
    rng = random.Random(f"{seed} {kind}")
    if kind == "passkey":
        keys = rng.sample(range(10_000, 100_000), samples)
        question = "What is the passkey of the archive?"
        return [Needle(f"The passkey of the archive is {key}.", question, str(key)) for key in keys]
    places = rng.sample([start + end for start in PLACE_STARTS for end in PLACE_ENDS], samples)
    return [_fact(place, rng) for place in places]


def cut_haystacks(
    codec: TokenCodec, texts: Sequence[str], length: int, window: int, samples: int, seed: int
) -> list[list[list[int]]]:
    """Cut haystacks, each of as few passages of one size as the window allows.

    Args:
        codec: The tokenizer.
        texts: Documents.
        length: Tokens of a haystack, shared evenly by its passages; what is left over is left out.
        window: Most tokens of a passage.
        samples: Haystacks.
        seed: Decides what is cut.

    Returns:
        Token ids of each passage of each haystack.

    Raises:
        InputError: If the texts do not hold that many passages.
    """
    count = ceil(length / window)
    passages = cut_passages(codec, texts, length // count, samples * count, seed)
    return [passages[start : start + count] for start in range(0, len(passages), count)]


def hide(codec: TokenCodec, haystack: Sequence[Sequence[int]], sentence: str, depth: int) -> tuple[str, ...]:
    """Put a sentence into a haystack, between two of its sentences; the passage gives up as many tokens at its end.

    Args:
        codec: The tokenizer.
        haystack: Token ids of each passage, all of one length.
        sentence: What is hidden.
        depth: Where: 0 is the beginning of the first passage, 100 the end of the last.

    Returns:
        The text of each passage, none of more tokens than it had.

    Raises:
        InputError: If a passage is too short to hold the sentence and words around it.
    """
    place = len(haystack) * depth / 100
    row = min(int(place), len(haystack) - 1)
    texts = [codec.decode(ids) for ids in haystack]
    texts[row] = _hide_in_passage(codec, haystack[row], sentence, place - row)
    return tuple(texts)


def _fact(place: str, rng: random.Random) -> Needle:
    keeper, thing = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}", rng.choice(THINGS)
    return Needle(f"{keeper} keeps the {thing} in {place}.", f"Where does {keeper} keep the {thing}?", place)


def _hide_in_passage(codec: TokenCodec, ids: Sequence[int], sentence: str, share: float) -> str:
    kept = len(ids)
    while kept > 0:
        # A cut within a character leaves a replacement mark, which would be a token of its own.
        text = _insert(codec.decode(ids[:kept]).rstrip("\ufffd").strip(), sentence, share)
        excess = len(codec.encode([text])[0]) - len(ids)
        if excess <= 0:
            return text
        kept -= excess
    raise InputError(
        "haystack",
        expected="passages longer than the sentence to hide in one",
        got=f"passages of {len(ids)} tokens for {sentence!r}",
        remedy="Ask for longer haystacks.",
    )


def _insert(text: str, sentence: str, share: float) -> str:
    """The text with a sentence between two others, where that is nearest to a share of it."""
    places = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    at = min(places, key=lambda place: abs(place - share * len(text)))
    return " ".join(piece for piece in (text[:at].strip(), sentence, text[at:].strip()) if piece)

"""Passages of an exact number of tokens, cut from documents that nobody trained on."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

from gmsa_rag.errors import InputError
from gmsa_rag.inference.tokens import TokenCodec

Item = TypeVar("Item")


def cut_passages(codec: TokenCodec, texts: Sequence[str], size: int, samples: int, seed: int) -> list[list[int]]:
    """Cut passages of exactly so many tokens, one per document as long as the documents last, then a next one of each.

    Args:
        codec: The tokenizer.
        texts: Documents.
        size: Tokens of a passage, >= 1.
        samples: Passages.
        seed: Decides the order of the documents and where the first passage of each starts.

    Returns:
        Token ids of the passages; decoded and encoded again they are the same. None overlap and no two are equal.

    Raises:
        InputError: If there are too few.
    """
    rng = random.Random(f"{seed} {size}")
    cuts = [_cut_document(codec, text, size, rng) for text in rng.sample(list(texts), len(texts))]
    found = [list(ids) for ids in islice(_distinct(_in_turn(cuts)), samples)]
    if len(found) < samples:
        raise InputError(
            "texts",
            expected=f"{samples} passages of {size} tokens in them",
            got=str(len(found)),
            remedy="Evaluate on more text, shorter passages or fewer samples.",
        )
    return found


def of_others(items: Sequence[Item]) -> list[Item]:
    """For each place the item of another one: the one before it.

    Example:
        >>> of_others(["a", "b", "c"])
        ['c', 'a', 'b']

    """
    return [*items[-1:], *items[:-1]]


def _in_turn(cuts: list[Iterator[list[int]]]) -> Iterator[list[int]]:
    """One of each iterator, then one more of each that lasts."""
    while cuts:
        lasting = []
        for cut in cuts:
            if (passage := next(cut, None)) is not None:
                yield passage
                lasting.append(cut)
        cuts = lasting


def _distinct(passages: Iterator[list[int]]) -> Iterator[tuple[int, ...]]:
    """Each passage the first time it comes."""
    seen: set[tuple[int, ...]] = set()
    for passage in map(tuple, passages):
        if passage not in seen:
            seen.add(passage)
            yield passage


def _cut_document(codec: TokenCodec, text: str, size: int, rng: random.Random) -> Iterator[list[int]]:
    """Passages of a document that do not overlap, from a random place on."""
    ids = codec.encode([text])[0]
    at = rng.randint(0, max(len(ids) - size, 0))
    while at + size <= len(ids):
        passage = ids[at : at + size]
        # A passage that starts or ends within a word or character may not be what its text is tokenised to.
        same = codec.encode([codec.decode(passage)])[0] == passage
        if same:
            yield passage
        at += size if same else 1

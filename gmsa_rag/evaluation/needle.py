"""Needles: whether one sentence, hidden in memories of many others, is found when it is asked for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from gmsa_rag.checks import check_rate
from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.haystack import KINDS, MOST_NEEDLES, Needle, cut_haystacks, draw_needles, hide
from gmsa_rag.evaluation.metrics import bootstrap_interval, cover_match, mean, normalise_answer, prefix_share
from gmsa_rag.evaluation.passages import of_others
from gmsa_rag.evaluation.progress import progress_bar
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Part, parse_answer
from gmsa_rag.memory.memory import Memory

Haystack = tuple[str, ...]
MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class NeedleRow:
    """How often one sentence of a haystack is found. All shares are 0 to 1, higher is better.

    Attributes:
        kind: "passkey", a number of five digits; "needle", a made-up place.
        length: Tokens of each haystack.
        depth: Where in it the sentence is hidden, in percent.
        rate: Tokens per soft token; None where the haystack is read as text.
        num_samples: Haystacks, each with a sentence of its own.
        accuracy: Share of answers that contain the right one; None if a prompt does not fit into the decoder.
        accuracy_interval: Its 95 % bootstrap interval; None with it.
        digit_accuracy: Mean share of a passkey's leading digits that are right; None for other kinds, or with accuracy.
        other_accuracy: The same as accuracy from the memories of another haystack, with another sentence at the same
            depth: what is guessed. None for text, or if a prompt does not fit.
        mean_positions: Mean positions of a prompt in the decoder.
        num_too_long: Prompts that do not leave room for an answer.
        other_accuracy_interval: 95 % bootstrap interval of other_accuracy; None with it.
    """

    kind: str
    length: int
    depth: int
    rate: int | None
    num_samples: int
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    digit_accuracy: float | None
    other_accuracy: float | None
    mean_positions: float
    num_too_long: int
    other_accuracy_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Cell:
    """Haystacks with their needles in; what is asked of one row."""

    kind: str
    length: int
    depth: int
    needles: Sequence[Needle]
    haystacks: Sequence[Haystack]


def evaluate_needle(
    gmsa: GMSA,
    texts: Sequence[str],
    *,
    kinds: Sequence[str] = KINDS,
    lengths: Sequence[int] = (256, 1024),
    depths: Sequence[int] = (0, 25, 50, 75, 100),
    rates: Sequence[int] = (1, 4, 8),
    samples: int = 20,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
) -> list[NeedleRow]:
    """Hide sentences in haystacks, and ask for them from memories and from full text.

    A haystack is cut into passages of at most the checkpoint's window, each a memory of its own. A length has the same
    haystacks for each kind, depth and rate, and a kind the same sentences throughout.

    Args:
        gmsa: The checkpoint, asked with its own prompt.
        texts: Documents nobody trained on.
        kinds: Some of `KINDS`.
        lengths: Tokens of a haystack, the hidden sentence included.
        depths: Where the sentence is hidden, 0 to 100 percent.
        rates: Rates to compress at; full text is read in any case.
        samples: Haystacks of each length, 2 to 400, since each is also read by the question of another.
        max_new_tokens: Most tokens of an answer.
        seed: Decides what is cut and hidden, and the bootstrap.

    Returns:
        A row per kind, length, rate (full text last) and depth, in order. Where a prompt does not fit into the decoder
        nothing is generated, and the row's shares are None.

    Raises:
        InputError: If the texts are too short, a passage cannot hold the sentence, or an argument makes no sense.
        RateError: If a rate is not an int >= 1.
    """
    _check_arguments(kinds, lengths, depths, rates, samples)
    ways = [*rates, None]
    rows: dict[tuple[str, int, int | None, int], NeedleRow] = {}
    with progress_bar() as bar:
        task = bar.add_task("needle", total=len(kinds) * len(lengths) * len(ways) * len(depths))
        for length in lengths:
            cells = _cells(gmsa, texts, kinds, length, depths, samples, seed)
            for rate in ways:  # a rate at a time: its memories are then let go
                memories = {} if rate is None else _compress(gmsa, cells, rate)
                for cell in cells:
                    row = _evaluate_cell(gmsa, cell, rate, memories, max_new_tokens, seed)
                    rows[cell.kind, length, rate, cell.depth] = row
                    bar.advance(task)
    return [rows[key] for key in product(kinds, lengths, ways, depths)]


def digit_accuracy(answer: str, passkey: str) -> float:
    """Share of a passkey's digits that are right before the first wrong one, in the first number of an answer.

    Example:
        >>> digit_accuracy("It is 48,913.", "48213")
        0.4

    """
    found = re.search(r"\d+", normalise_answer(answer))
    return prefix_share([int(digit) for digit in found.group()] if found else [], [int(digit) for digit in passkey])


def _cells(
    gmsa: GMSA, texts: Sequence[str], kinds: Sequence[str], length: int, depths: Sequence[int], samples: int, seed: int
) -> list[_Cell]:
    haystacks = cut_haystacks(gmsa.codec, texts, length, gmsa.config.window, samples, seed)
    cells = []
    for kind in kinds:
        needles = draw_needles(kind, samples, seed)
        for depth in depths:
            pairs = zip(haystacks, needles, strict=True)
            hidden = [hide(gmsa.codec, haystack, needle.sentence, depth) for haystack, needle in pairs]
            cells.append(_Cell(kind, length, depth, needles, hidden))
    return cells


def _compress(gmsa: GMSA, cells: Sequence[_Cell], rate: int) -> dict[str, Memory]:
    """A memory for each distinct passage: most stand in the haystacks of several depths and kinds."""
    distinct = list(dict.fromkeys(text for cell in cells for haystack in cell.haystacks for text in haystack))
    return dict(zip(distinct, gmsa.compress(distinct, rate), strict=True))


def _evaluate_cell(
    gmsa: GMSA, cell: _Cell, rate: int | None, memories: Mapping[str, Memory], max_new_tokens: int, seed: int
) -> NeedleRow:
    read: list[list[Part]] = [[memories.get(text, text) for text in haystack] for haystack in cell.haystacks]
    prompts = _prompts(gmsa, cell.needles, read)
    positions = [gmsa.num_positions(prompt) for prompt in prompts]
    answers = _answers(gmsa, prompts, max_new_tokens)
    others = None if rate is None else _answers(gmsa, _prompts(gmsa, cell.needles, of_others(read)), max_new_tokens)
    found, guessed = (None if said is None else _found(said, cell.needles) for said in (answers, others))
    digits = None
    if answers is not None and cell.kind == "passkey":
        pairs = zip(answers, cell.needles, strict=True)
        digits = mean([digit_accuracy(answer, needle.answer) for answer, needle in pairs])
    return NeedleRow(
        kind=cell.kind,
        length=cell.length,
        depth=cell.depth,
        rate=rate,
        num_samples=len(cell.needles),
        accuracy=None if found is None else mean(found),
        accuracy_interval=None if found is None else bootstrap_interval(found, seed),
        digit_accuracy=digits,
        other_accuracy=None if guessed is None else mean(guessed),
        mean_positions=mean(positions),
        num_too_long=sum(length + max_new_tokens > gmsa.decoder_window for length in positions),
        other_accuracy_interval=None if guessed is None else bootstrap_interval(guessed, seed),
    )


def _prompts(gmsa: GMSA, needles: Sequence[Needle], read: Sequence[Sequence[Part]]) -> list[list[Part]]:
    return [gmsa.answer_prompt(needle.question, parts) for needle, parts in zip(needles, read, strict=True)]


def _answers(gmsa: GMSA, prompts: Sequence[Sequence[Part]], max_new_tokens: int) -> list[str] | None:
    """Bare answers; None if a prompt does not leave room for one."""
    if max(map(gmsa.num_positions, prompts)) + max_new_tokens > gmsa.decoder_window:
        return None
    return [parse_answer(text, gmsa.config).text for text in gmsa.generate(prompts, max_new_tokens=max_new_tokens)]


def _found(answers: Sequence[str], needles: Sequence[Needle]) -> list[float]:
    return [cover_match(answer, [needle.answer]) for answer, needle in zip(answers, needles, strict=True)]


def _check_arguments(
    kinds: Sequence[str], lengths: Sequence[int], depths: Sequence[int], rates: Sequence[int], samples: int
) -> None:
    for rate in rates:
        check_rate(rate)
    sound = kinds and set(kinds) <= set(KINDS) and lengths and min(lengths) >= 1 and depths
    if not sound or min(depths) < 0 or max(depths) > 100 or not 2 <= samples <= MOST_NEEDLES:
        raise InputError(
            "needle",
            expected=f"kinds of {', '.join(KINDS)}, lengths >= 1, depths of 0 to 100, 2 to {MOST_NEEDLES} samples",
            got=f"kinds {list(kinds)}, lengths {list(lengths)}, depths {list(depths)}, {samples} samples",
            remedy="Change the arguments.",
        )

"""`gmsa bench answer`: a question over passages, from memories and from full text, through one engine in one run."""

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from gmsa_rag.benchmark.engines import widen
from gmsa_rag.benchmark.harness import Alternative, Timing, measure
from gmsa_rag.benchmark.report import Bar, plot_bars
from gmsa_rag.benchmark.texts import make_passages
from gmsa_rag.errors import InputError
from gmsa_rag.inference.embedding import embed_prompt
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.generation import Sampling
from gmsa_rag.inference.prompt import Part, tokenise
from gmsa_rag.memory.memory import Memory
from gmsa_rag.memory.store import MemoryStore

QUESTION = "Which of these entries speaks of a lamp that guides ships at night?"
FULL, TRANSFORMERS = "full text", "full text, transformers"
HELD, STORED, COMPRESSED = "memories at hand", "stored memories", "compressed now"


@dataclass(frozen=True)
class AnswerRow:
    """How long an answer of a fixed number of tokens takes in one way.

    Attributes:
        way: "full text", through the same engine; "full text, transformers", by its `generate` as it comes; "memories
            at hand", in the host's memory; "stored memories", fetched from an SQLite file; "compressed now", encoder
            included.
        context: Tokens of the passages.
        rate: Tokens per soft token; None for full text.
        positions: Of the prompt in the decoder, question and template included.
        first_token_ms: Median milliseconds from question and texts to the first token, tokenising included.
        first_token_ms_quartiles: First and third quartile of it.
        first_token_speedup: Median over the rounds of full text's time divided by this one's; higher is faster.
        total_ms: Median milliseconds until the whole answer is there.
        total_ms_quartiles: First and third quartile of it.
        total_speedup: Median over the rounds of full text's time divided by this one's.
        ceiling: The speedup that counting operations on the passages' tokens gives, see `ceiling`; None for full text.
    """

    way: str
    context: int
    rate: int | None
    positions: int
    first_token_ms: float
    first_token_ms_quartiles: tuple[float, float]
    first_token_speedup: float
    total_ms: float
    total_ms_quartiles: tuple[float, float]
    total_speedup: float
    ceiling: float | None


@dataclass(frozen=True)
class _Way:
    name: str
    rate: int | None
    passages: Callable[[], Sequence[Part]]


def measure_answers(
    gmsa: GMSA, counts: Sequence[int], tokens: int, rates: Sequence[int], *, new_tokens: int = 32, repeats: int = 5
) -> tuple[list[AnswerRow], dict[str, str]]:
    """Time one question over passages in all ways, in turn within one run for each number of passages.

    Args:
        gmsa: An engine that nothing else uses: its window is widened if the full text needs it.
        counts: Numbers of passages.
        tokens: Of each passage.
        rates: Tokens per soft token.
        new_tokens: Of each answer, >= 2; no end token comes before.
        repeats: Rounds that count, >= 1.

    Returns:
        For each number of passages the two full-text ways, and the three with memories for each rate; and notes: when
        compressing pays, and whether our engine says the same as transformers.

    Raises:
        InputError: If there is nothing to measure.
    """
    if not counts or not rates or new_tokens < 2:
        got = f"{len(counts)} numbers, {len(rates)} rates, {new_tokens} tokens"
        raise InputError("answer", expected="passages, rates and at least 2 tokens", got=got, remedy="Ask for some.")
    rows: list[AnswerRow] = []
    notes: dict[str, str] = {}
    for count in counts:
        passages = make_passages(gmsa.codec, count, tokens)
        widen(gmsa, gmsa.num_positions(gmsa.answer_prompt(QUESTION, passages)) + new_tokens)
        measured = _measure(gmsa, passages, rates, new_tokens, repeats)
        same = _agreement(gmsa, passages, new_tokens)
        notes[f"full text of {measured[0].context} tokens, new tokens as transformers gives them"] = same
        rows += measured
    return rows, notes | break_even(rows)


def ceiling(gmsa: GMSA, rate: int, *, compressing: bool) -> float:
    """How much sooner the first token can come, by the operations on each token of the passages.

    Args:
        gmsa: With k encoder layers and l of alignment, beside the decoder's L.
        rate: Tokens per soft token, r.
        compressing: Whether the memories are made on the spot.

    Returns:
        1 / (k/L + 1/r + l/(L r)) with compressing, else r; attention, question and template are not counted.
    """
    layers = int(gmsa.decoder.config.num_hidden_layers)
    making = gmsa.config.encoder_layers / layers + gmsa.config.lsa_layers / (layers * rate) if compressing else 0.0
    return 1 / (making + 1 / rate)


def break_even(rows: Iterable[AnswerRow]) -> dict[str, str]:
    """From how many uses, and from which context on, compressing pays; by whole answers and their speedups.

    Times are in units of full text's in the same round, so that a machine that slows down does not show.
    """
    time = {(row.way, row.context, row.rate): 1 / row.total_speedup for row in rows}
    notes: dict[str, str] = {}
    for rate in dict.fromkeys(rate for way, _, rate in time if way == STORED):
        contexts = sorted(context for way, context, r in time if (way, r) == (STORED, rate))
        for context in contexts:
            stored = time[STORED, context, rate]
            making = time[COMPRESSED, context, rate] - stored
            uses = max(1, math.ceil(making / (1 - stored))) if stored < 1 else None
            notes[f"rate {rate}, {context} tokens, compressing pays from use"] = str(uses or "never")
        paying = [context for context in contexts if time[COMPRESSED, context, rate] <= 1]
        notes[f"rate {rate}, one use, compressing pays from tokens"] = str(min(paying, default="more than measured"))
    return notes


def plot_answers(rows: Sequence[AnswerRow], path: Path) -> Path:
    """Draw milliseconds to the first token of each way."""
    colors = {FULL: "C7", TRANSFORMERS: "C8", HELD: "C2", STORED: "C0", COMPRESSED: "C1"}
    bars = [
        Bar(
            f"{row.way}{f' at rate {row.rate}' if row.rate else ''}, {row.context:,} tokens",
            row.first_token_ms, row.first_token_ms_quartiles, colors[row.way],
        )
        for row in rows
    ]  # fmt: skip
    return plot_bars(bars, path, title="Time to first token", x_label="milliseconds")


def _measure(
    gmsa: GMSA, passages: Sequence[str], rates: Sequence[int], new_tokens: int, repeats: int
) -> list[AnswerRow]:
    with tempfile.TemporaryDirectory() as directory, MemoryStore(Path(directory) / "memories.db") as store:
        ways = _ways(gmsa, passages, rates, store)
        first, whole = (
            measure(
                [_alternative(gmsa, way, count) for way in ways],
                baseline=FULL, device=gmsa.decoder.device, repeats=repeats, memory=False,
            )
            for count in (1, new_tokens)
        )  # fmt: skip
        context = sum(map(len, gmsa.codec.encode(passages)))
        return [_row(gmsa, way, context, *times) for way, *times in zip(ways, first, whole, strict=True)]


def _ways(gmsa: GMSA, passages: Sequence[str], rates: Sequence[int], store: MemoryStore) -> list[_Way]:
    ways = [_Way(name, None, lambda: passages) for name in (FULL, TRANSFORMERS)]
    for rate in rates:
        held = _memories(gmsa, passages, rate, store)
        ways.append(_Way(HELD, rate, partial(list, held)))
        ways.append(_Way(STORED, rate, partial(_memories, gmsa, passages, rate, store)))
        ways.append(_Way(COMPRESSED, rate, partial(_memories, gmsa, passages, rate, None)))
    return ways


def _memories(gmsa: GMSA, passages: Sequence[str], rate: int, store: MemoryStore | None) -> list[Memory]:
    return gmsa.compress(passages, rate, store=store)


def _alternative(gmsa: GMSA, way: _Way, new_tokens: int) -> Alternative:
    name = way.name if way.rate is None else f"{way.name} {way.rate}"
    answer = _theirs if way.name == TRANSFORMERS else _ours
    return Alternative(name, lambda: answer(gmsa, way.passages(), new_tokens))


def _ours(gmsa: GMSA, passages: Sequence[Part], new_tokens: int) -> str:
    prompt = gmsa.answer_prompt(QUESTION, passages)
    return str(gmsa.generate(prompt, max_new_tokens=new_tokens, min_new_tokens=new_tokens))


def _agreement(gmsa: GMSA, passages: Sequence[Part], new_tokens: int) -> str:
    """How many of our first tokens after the full text are those of transformers."""
    tokens = tokenise(gmsa.answer_prompt(QUESTION, passages), gmsa.codec)
    embedded = embed_prompt(tokens, gmsa.decoder, gmsa.fingerprint)
    [ours] = gmsa.decoding.generate_ids([embedded], Sampling(new_tokens, min_new_tokens=new_tokens))
    pairs = zip(ours, _theirs(gmsa, passages, new_tokens), strict=True)
    return f"{sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))} of {new_tokens}"


@torch.inference_mode()
def _theirs(gmsa: GMSA, passages: Sequence[Part], new_tokens: int) -> list[int]:
    """New token ids of the full text by transformers' generate, its cache and loop as they come."""
    (ids,) = tokenise(gmsa.answer_prompt(QUESTION, passages), gmsa.codec)
    prompt = torch.tensor([ids], device=gmsa.decoder.device)
    settings = GenerationConfig(
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=gmsa.codec.end
    )
    generate: Any = gmsa.decoder.generate
    rows = generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    new: list[int] = rows[0, prompt.shape[1] :].tolist()
    return new


def _row(gmsa: GMSA, way: _Way, context: int, first: Timing, whole: Timing) -> AnswerRow:
    return AnswerRow(
        way=way.name,
        context=context,
        rate=way.rate,
        positions=gmsa.num_positions(gmsa.answer_prompt(QUESTION, way.passages())),
        first_token_ms=1_000 * first.seconds,
        first_token_ms_quartiles=_in_ms(first.seconds_quartiles),
        first_token_speedup=first.speedup,
        total_ms=1_000 * whole.seconds,
        total_ms_quartiles=_in_ms(whole.seconds_quartiles),
        total_speedup=whole.speedup,
        ceiling=None if way.rate is None else ceiling(gmsa, way.rate, compressing=way.name == COMPRESSED),
    )


def _in_ms(seconds: tuple[float, float]) -> tuple[float, float]:
    return 1_000 * seconds[0], 1_000 * seconds[1]

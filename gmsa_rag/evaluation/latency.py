"""Latency: how long an answer takes from stored memories, from memories made on the spot, and from full text."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.progress import progress_bar
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Part
from gmsa_rag.training.data import Question

WAYS = ("stored_memories", "fresh_memories", "full_text")
# Written for this measurement: what is read does not matter, only how long it is.
PASSAGES = (
    (
        "Lighthouse",
        "A lighthouse is a tower that carries a lamp to guide ships along a coast at night. Early ones burned wood "
        "or coal in an open brazier, later ones oil behind glass, and most are lit by electric lamps today. A "
        "Fresnel lens, built from rings of prisms, gathers the light into a narrow beam that can be seen from more "
        "than thirty kilometres away. Each lighthouse flashes in a rhythm of its own, so that sailors can tell from "
        "a chart where they are. Keepers once lived in the tower to trim the wicks and wind the clockwork that "
        "turned the lens; nearly all of the lights now run by themselves.",
    ),
    (
        "Bread",
        "Bread is baked from a dough of flour and water. Yeast or a sourdough culture ferments the sugars in the "
        "flour and gives off carbon dioxide, which the gluten of wheat or rye holds as bubbles, so that the loaf "
        "rises. Kneading lines the gluten up in long strands and makes the dough elastic. In the oven the starch "
        "swells and sets, the crust turns brown at about a hundred and fifty degrees, and the water near the "
        "surface escapes as steam. Flat breads are made without any leaven and are older than raised ones; grains "
        "of burnt flat bread have been found at camp sites from before the beginning of farming.",
    ),
    (
        "Glacier",
        "A glacier is a body of ice that forms where more snow falls in winter than melts in summer. Over decades "
        "the lower layers are pressed into dense blue ice, which flows slowly downhill under its own weight, some "
        "of them a few metres and others several kilometres a year. The moving ice carries stones along, grinds the "
        "rock below and leaves valleys with steep sides and flat floors behind. Ridges of rubble, called moraines, "
        "mark how far it once reached. Glaciers hold most of the fresh water on Earth, and the rivers that they "
        "feed run high in the warm months, when rain is scarce.",
    ),
    (
        "Telegraph",
        "The electric telegraph sent messages along a wire as pulses of current. In the code named after Samuel "
        "Morse each letter is a pattern of short and long pulses, the commonest letters having the shortest ones. "
        "Operators tapped the pulses with a key, and at the other end an electromagnet marked them on a strip of "
        "paper or made them audible as clicks. Within thirty years of the first public lines, cables crossed the "
        "Atlantic Ocean, and a message that had taken a ship ten days took a few minutes. Railways used it to keep "
        "trains apart, and newspapers to report on the same day what had happened far away.",
    ),
)
QUESTIONS = ("What gathers the light into a beam?", "What makes the loaf rise?", "What marks how far the ice reached?")


@dataclass(frozen=True)
class LatencyRow:
    """How long answers take in one way. Times are wall clock, over all questions and repeats.

    Attributes:
        way: "stored_memories", read from memory; "fresh_memories", compressed on the spot; "full_text".
        rate: Tokens per soft token; None for full text.
        num_runs: Answers timed.
        mean_positions: Mean positions of a prompt in the decoder.
        first_token_ms: Median milliseconds until the first token is there.
        first_token_ms_quartiles: First and third quartile of it.
        first_token_speedup: Median of full text divided by this one's, higher is faster.
        total_ms: Median milliseconds until the answer is there.
        total_ms_quartiles: First and third quartile of it.
        total_speedup: Median of full text divided by this one's, higher is faster.
    """

    way: str
    rate: int | None
    num_runs: int
    mean_positions: float
    first_token_ms: float
    first_token_ms_quartiles: tuple[float, float]
    first_token_speedup: float
    total_ms: float
    total_ms_quartiles: tuple[float, float]
    total_speedup: float


@dataclass(frozen=True)
class _Times:
    first_token: list[float]
    total: list[float]
    positions: list[int]


def measure_latency(
    gmsa: GMSA, questions: Sequence[Question], rate: int = 8, *, repeats: int = 5, max_new_tokens: int = 16
) -> list[LatencyRow]:
    """Time the same questions in three ways through the same engine, in turn within one run.

    Args:
        gmsa: The checkpoint.
        questions: What is asked, of which passages.
        rate: Tokens per soft token.
        repeats: How often each question is asked in each way, >= 1; once more before, which is not counted.
        max_new_tokens: Most tokens of an answer, which ends where the decoder ends it.

    Returns:
        A row a way, in the order of `WAYS`.

    Raises:
        InputError: If there is nothing to measure.
        PromptTooLongError: If the passages' full text does not fit into the decoder.
    """
    if not questions or repeats < 1:
        raise InputError(
            "latency",
            expected="questions and at least 1 repeat",
            got=f"{len(questions)}, {repeats}",
            remedy="Ask some.",
        )
    times = {way: _Times([], [], []) for way in WAYS}
    with progress_bar() as bar:
        task = bar.add_task("latency", total=(repeats + 1) * len(questions))
        for turn in range(repeats + 1):
            for question in questions:
                _ask(gmsa, question, rate, max_new_tokens, times if turn else None)
                bar.advance(task)
    return [_row(way, rate, times) for way in WAYS]


def sample_questions(num_passages: int) -> list[Question]:
    """Questions with so many passages each, all texts different, built in.

    Args:
        num_passages: Passages a question, about 100 words each, >= 1.
    """
    chosen = [PASSAGES[number % len(PASSAGES)] for number in range(num_passages)]
    texts = tuple(f"Entry {number}. {text}" for number, (_, text) in enumerate(chosen, 1))
    return [Question(asked, (), tuple(title for title, _ in chosen), texts, ()) for asked in QUESTIONS]


def main(
    model: Annotated[str, typer.Option(help="Bundled name, directory or hub id of a checkpoint.")] = "gmsa-mini",
    passages: Annotated[int, typer.Option(help="Passages in each prompt, about 100 words each.", min=1)] = 5,
    repeats: Annotated[int, typer.Option(help="Times each question is asked.", min=1)] = 5,
    rate: Annotated[int, typer.Option(help="Tokens per soft token.", min=1)] = 8,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's own choice.", min=0)] = 0,
) -> None:
    """Print how long an answer takes from stored memories, from memories made on the spot, and from full text."""
    import torch

    from gmsa_rag.evaluation.report import describe_setting, markdown_table

    if threads:
        torch.set_num_threads(threads)
    gmsa = GMSA.from_pretrained(model)
    questions = sample_questions(passages)
    setting = describe_setting(gmsa, model, seed=0, files=(), num_samples=len(questions))
    typer.echo(markdown_table(measure_latency(gmsa, questions, rate, repeats=repeats)))
    typer.echo(
        f"{setting.model} in {setting.dtype}, torch {setting.torch}, {setting.threads} threads, {setting.machine}"
    )


def _ask(gmsa: GMSA, question: Question, rate: int, max_new_tokens: int, times: dict[str, _Times] | None) -> None:
    """Ask in every way; what is measured is added to `times`."""
    stored: list[Part] = list(gmsa.compress(question.passages, rate))
    sources: dict[str, Callable[[], list[Part]]] = {
        "stored_memories": lambda: stored,
        "fresh_memories": lambda: list(gmsa.compress(question.passages, rate)),
        "full_text": lambda: list(question.passages),
    }
    for way in WAYS:
        first_token = _timed(gmsa, question, sources[way], 1)
        total = _timed(gmsa, question, sources[way], max_new_tokens)
        if times is not None:
            times[way].first_token.append(first_token)
            times[way].total.append(total)
            parts = gmsa.answer_prompt(question.question, sources[way](), question.titles)
            times[way].positions.append(gmsa.num_positions(parts))


def _timed(gmsa: GMSA, question: Question, passages: Callable[[], list[Part]], max_new_tokens: int) -> float:
    """Milliseconds from the question to so many tokens; they are read, so an accelerator has finished."""
    start = time.perf_counter()
    gmsa.generate(gmsa.answer_prompt(question.question, passages(), question.titles), max_new_tokens=max_new_tokens)
    return 1_000 * (time.perf_counter() - start)


def _row(way: str, rate: int, times: dict[str, _Times]) -> LatencyRow:
    own, full = times[way], times["full_text"]
    return LatencyRow(
        way=way,
        rate=None if way == "full_text" else rate,
        num_runs=len(own.total),
        mean_positions=statistics.fmean(own.positions),
        first_token_ms=statistics.median(own.first_token),
        first_token_ms_quartiles=_quartiles(own.first_token),
        first_token_speedup=statistics.median(full.first_token) / statistics.median(own.first_token),
        total_ms=statistics.median(own.total),
        total_ms_quartiles=_quartiles(own.total),
        total_speedup=statistics.median(full.total) / statistics.median(own.total),
    )


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


if __name__ == "__main__":
    typer.run(main)

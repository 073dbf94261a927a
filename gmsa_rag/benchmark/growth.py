"""`gmsa bench compress --growth`: time and peak memory of compressing against the number of passages and tokens."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from gmsa_rag.benchmark.compress import Workload, draw_passages, in_dtype
from gmsa_rag.benchmark.harness import Alternative, measure
from gmsa_rag.errors import InputError
from gmsa_rag.inference.compression import compress_passages
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.plotting import Line, Panel, plot_panels

FEW, MANY = 16, 256


@dataclass(frozen=True)
class GrowthRow:
    """What compressing so much costs.

    Attributes:
        series: "ragged", passages of different lengths, or "whole", passages as long as the window.
        dtype: What was computed in.
        passages: How many.
        tokens: Of all of them.
        seconds: Median.
        seconds_quartiles: First and third quartile of it.
        microseconds_per_token: Median divided by the tokens.
        peak_mib: Most memory held beyond the weights; None if unknown.
        runs: Seconds of each round.
    """

    series: str
    dtype: str
    passages: int
    tokens: int
    seconds: float
    seconds_quartiles: tuple[float, float]
    microseconds_per_token: float
    peak_mib: float | None
    runs: tuple[float, ...]


def measure_all_growth(
    compressor: Compressor,
    workload: Workload,
    dtypes: Sequence[torch.dtype],
    counts: Sequence[int],
    totals: Sequence[int],
    *,
    vocabulary: int,
    seed: int,
    repeats: int = 5,
    memory: bool = True,
) -> tuple[list[GrowthRow], dict[str, float]]:
    """Time both series in each dtype.

    Args:
        compressor: The compressor.
        workload: Whose first passages make the ragged series.
        dtypes: What to compute in.
        counts: Passages of the ragged series.
        totals: Tokens of the whole series.
        vocabulary: Ids are below it.
        seed: Of the whole series' ids.
        repeats: Rounds that count, >= 1.
        memory: Whether to measure peak memory.

    Returns:
        A row a workload; notes on the ragged series' deviation from linear growth between 16 and 256 passages.
    """
    rows: list[GrowthRow] = []
    notes: dict[str, float] = {}
    whole = whole_workloads(totals, workload, vocabulary=vocabulary, seed=seed)
    for dtype in dtypes:
        cast = in_dtype(compressor, dtype)
        ragged = measure_growth(cast, ragged_workloads(counts, workload), "ragged", repeats=repeats, memory=memory)
        deviation = deviation_from_linear(ragged)
        if deviation is not None:
            notes[f"deviation_from_linear_{FEW}_to_{MANY}_{ragged[0].dtype}"] = deviation
        rows += [*ragged, *measure_growth(cast, whole, "whole", repeats=repeats, memory=memory)]
    return rows, notes


def measure_growth(
    compressor: Compressor, workloads: Sequence[Workload], series: str, *, repeats: int = 5, memory: bool = True
) -> list[GrowthRow]:
    """Time workloads of different size in turn within one run.

    Args:
        compressor: The compressor.
        workloads: Of different numbers of passages.
        series: Name of the rows.
        repeats: Rounds that count, >= 1.
        memory: Whether to measure peak memory.

    Returns:
        A row a workload.
    """
    by_size = {str(len(workload.passages)): workload for workload in workloads}
    alternatives = [
        Alternative(size, partial(compress_passages, compressor, work.passages, work.rate, work.window))
        for size, work in by_size.items()
    ]
    timings = measure(
        alternatives, baseline=alternatives[-1].name, device=compressor.encoder.device, repeats=repeats, memory=memory
    )
    return [
        GrowthRow(
            series=series,
            dtype=str(compressor.encoder.dtype).removeprefix("torch."),
            passages=int(timing.name),
            tokens=sum(by_size[timing.name].lengths),
            seconds=timing.seconds,
            seconds_quartiles=timing.seconds_quartiles,
            microseconds_per_token=1e6 * timing.seconds / sum(by_size[timing.name].lengths),
            peak_mib=None if timing.peak_bytes is None else timing.peak_bytes / 2**20,
            runs=timing.runs,
        )
        for timing in timings
    ]


def ragged_workloads(counts: Sequence[int], template: Workload) -> list[Workload]:
    """The first so many passages of a workload, each count once.

    Raises:
        InputError: If the workload has fewer.
    """
    if not counts or max(counts) > len(template.passages):
        raise InputError(
            "growth", expected=f"1 to {len(template.passages)} passages", got=str(list(counts)),
            remedy="Ask for no more than --passages.",
        )  # fmt: skip
    return [Workload(template.passages[:count], template.rate, template.window) for count in sorted(set(counts))]


def whole_workloads(totals: Sequence[int], template: Workload, *, vocabulary: int, seed: int) -> list[Workload]:
    """Passages as long as the window, of so many tokens together, rounded up to whole passages."""
    window = template.window
    counts = sorted({-(-total // window) for total in totals})
    passages = draw_passages(max(counts), window, window, vocabulary=vocabulary, seed=seed)
    return [Workload(passages[:count], template.rate, window) for count in counts]


def deviation_from_linear(rows: Sequence[GrowthRow], few: int = FEW, many: int = MANY) -> float | None:
    """How much more time a token costs among many passages than among few, each round by itself, the median.

    Args:
        rows: Of one series and dtype.
        few: Passages of the smaller workload.
        many: Passages of the larger one.

    Returns:
        0 for linear growth, 0.1 for a tenth more a token among many; None if either was not measured.
    """
    found = {row.passages: row for row in rows}
    if few not in found or many not in found:
        return None
    return statistics.median(
        (theirs / found[many].tokens) / (ours / found[few].tokens) - 1
        for ours, theirs in zip(found[few].runs, found[many].runs, strict=True)
    )


def plot_growth(rows: Sequence[GrowthRow], path: Path) -> Path:
    """Draw time and peak memory against tokens, a line a series and dtype."""
    return plot_panels(
        [Panel("seconds", _lines(rows, "seconds"), y_range=None),
         Panel("peak memory, MiB", _lines(rows, "peak_mib"), y_range=None)],
        path, x_label="tokens",
    )  # fmt: skip


def _lines(rows: Sequence[GrowthRow], field: str) -> list[Line]:
    keys = list(dict.fromkeys((row.series, row.dtype) for row in rows))
    return [
        Line(
            f"{series}, {dtype}",
            [row.tokens for row in rows if (row.series, row.dtype) == (series, dtype)],
            [getattr(row, field) for row in rows if (row.series, row.dtype) == (series, dtype)],
            color=f"C{number}",
        )
        for number, (series, dtype) in enumerate(keys)
    ]

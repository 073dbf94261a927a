"""`gmsa bench compress`: passages to soft tokens, ours beside the published implementation's way."""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gmsa_rag.benchmark.flops import counted_flops, known_peak, matmul_rate, model_flops
from gmsa_rag.benchmark.harness import Alternative, Timing, measure
from gmsa_rag.benchmark.published import PublishedWay
from gmsa_rag.benchmark.report import Bar, plot_bars
from gmsa_rag.errors import GMSAError, InputError
from gmsa_rag.inference.compression import compress_passages
from gmsa_rag.modeling.alignment import cast_weights
from gmsa_rag.modeling.compressor import Compressor

PUBLISHED = "published"
# Soft tokens are normed, of a root mean square near one.
MAX_DIFFERENCE, MAX_RELATIVE = 1e-4, 0.05


@dataclass(frozen=True)
class Workload:
    """What is compressed.

    Attributes:
        passages: Token ids of each.
        rate: Tokens per soft token.
        window: Longest run of tokens the encoder takes; no passage is longer.
    """

    passages: tuple[tuple[int, ...], ...]
    rate: int
    window: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each passage."""
        return [len(ids) for ids in self.passages]


@dataclass(frozen=True)
class CompressRow:
    """How fast one way compresses.

    Attributes:
        way: "published" or "ours".
        dtype: What it computes in.
        seconds: Median of all passages.
        seconds_quartiles: First and third quartile of it.
        tokens_per_second: Source tokens, padding not counted, by the median.
        speedup: Median over the rounds of the published way's time divided by this one's; higher is faster.
        speedup_quartiles: First and third quartile of it.
        tflop: Operations counted while it ran, 1e12.
        utilisation: Operations that the model needs, a second, as a share of the dtype's peak.
        peak_mib: Most memory held beyond the weights; None if unknown.
        max_difference: Largest difference of its soft tokens from the published ones.
        relative_difference: Root mean square of the difference divided by that of the published soft tokens.
        runs: Seconds of each round.
    """

    way: str
    dtype: str
    seconds: float
    seconds_quartiles: tuple[float, float]
    tokens_per_second: float
    speedup: float
    speedup_quartiles: tuple[float, float]
    tflop: float
    utilisation: float
    peak_mib: float | None
    max_difference: float
    relative_difference: float
    runs: tuple[float, ...]


@dataclass(frozen=True)
class _Way:
    name: str
    compressor: Compressor
    run: Callable[[], list[Tensor]]


def measure_compress(
    compressor: Compressor,
    workload: Workload,
    dtypes: Sequence[torch.dtype],
    *,
    repeats: int = 5,
    memory: bool = True,
    peak_tflops: float | None = None,
) -> tuple[list[CompressRow], dict[str, float | str]]:
    """Compare the soft tokens of all ways, then time them in turn within one run.

    Args:
        compressor: In the first of the dtypes.
        workload: What is compressed.
        dtypes: What ours computes in; the published way computes in the first.
        repeats: Rounds that count, >= 1.
        memory: Whether to measure peak memory.
        peak_tflops: Operations a second that the device can do in the first dtype, 1e12; None takes its data sheet's,
            or else what it does in a matrix product of the model.

    Returns:
        The published way's row and one a dtype; notes on what the shares are of.

    Raises:
        GMSAError: If ours gives other soft tokens than the published way in the same dtype.
    """
    ways = _ways(compressor, workload, dtypes)
    device = compressor.encoder.device
    counted, differences = _compare(ways)
    alternatives = [Alternative(name, way.run) for name, way in ways.items()]
    timings = measure(alternatives, baseline=PUBLISHED, device=device, repeats=repeats, memory=memory)
    peaks, source = _peaks(ways, dtypes, peak_tflops)
    useful = model_flops(compressor, workload.lengths, workload.rate)
    rows = [
        _row(ways[timing.name], timing, sum(workload.lengths), counted[timing.name], differences[timing.name],
             useful / timing.seconds / peaks[ways[timing.name].compressor.encoder.dtype])
        for timing in timings
    ]  # fmt: skip
    notes: dict[str, float | str] = {f"peak_tflops_{_name(dtype)}": peak / 1e12 for dtype, peak in peaks.items()}
    return rows, notes | {"peak": source, "model_tflop": useful / 1e12, "tokens": sum(workload.lengths)}


def draw_passages(count: int, least: int, most: int, *, vocabulary: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Passages of random tokens and lengths; of the same seed the shorter list is the beginning of the longer one.

    Args:
        count: Passages, >= 1.
        least: Fewest tokens of one, >= 1.
        most: Most tokens of one, >= least.
        vocabulary: Ids are below it.
        seed: Of lengths and ids.

    Raises:
        InputError: If there is nothing to draw.
    """
    if count < 1 or not 1 <= least <= most:
        raise InputError(
            "passages", expected="at least 1 of 1 <= least <= most tokens", got=f"{count} of {least} to {most}",
            remedy="Ask for some.",
        )  # fmt: skip
    drawn = random.Random(seed)
    return tuple(tuple(drawn.choices(range(vocabulary), k=drawn.randint(least, most))) for _ in range(count))


def in_dtype(compressor: Compressor, dtype: torch.dtype) -> Compressor:
    """The compressor itself, or a copy of its weights in another dtype."""
    if compressor.encoder.dtype == dtype:
        return compressor
    copied = copy.deepcopy(compressor)
    cast_weights(copied, dtype)
    return copied


def plot_compress(rows: Sequence[CompressRow], path: Path) -> Path:
    """Draw tokens per second of each way."""
    tokens = rows[0].tokens_per_second * rows[0].seconds
    bars = [
        Bar(
            f"{row.way}, {row.dtype}", row.tokens_per_second,
            (tokens / row.seconds_quartiles[1], tokens / row.seconds_quartiles[0]),
            "C7" if row.way == PUBLISHED else "C0",
        )
        for row in rows
    ]  # fmt: skip
    return plot_bars(bars, path, title="Compressing", x_label="tokens per second")


def _ways(compressor: Compressor, workload: Workload, dtypes: Sequence[torch.dtype]) -> dict[str, _Way]:
    published = PublishedWay(compressor)
    ways = {PUBLISHED: _Way(PUBLISHED, compressor, partial(published.compress, workload.passages, workload.rate))}
    for dtype in dtypes:
        cast = in_dtype(compressor, dtype)
        ways[f"ours {_name(dtype)}"] = _Way("ours", cast, partial(_compress, cast, workload))
    return ways


def _compress(compressor: Compressor, workload: Workload) -> list[Tensor]:
    compressed = compress_passages(compressor, workload.passages, workload.rate, workload.window)
    return [soft_tokens for soft_tokens, _ in compressed]


def _compare(ways: Mapping[str, _Way]) -> tuple[dict[str, int], dict[str, tuple[float, float]]]:
    """Operations of each way and its differences from the published soft tokens, from one run of each."""
    counted: dict[str, int] = {}
    soft: dict[str, Tensor] = {}
    for name, way in ways.items():
        kept: list[Tensor] = []
        counted[name] = counted_flops(lambda run=way.run, kept=kept: kept.extend(run()))  # type: ignore[misc]
        soft[name] = torch.cat(kept).float().cpu()
    differences = {name: _difference(tensor, soft[PUBLISHED]) for name, tensor in soft.items()}
    for name, way in ways.items():
        if way.compressor is ways[PUBLISHED].compressor:
            _check_equal(name, way.compressor.encoder.dtype, *differences[name])
    return counted, differences


def _difference(ours: Tensor, published: Tensor) -> tuple[float, float]:
    """Largest difference, and root mean square of it relative to the published."""
    difference = ours - published
    return difference.abs().max().item(), (difference.norm() / published.norm()).item()


def _check_equal(name: str, dtype: torch.dtype, largest: float, relative: float) -> None:
    exact = dtype == torch.float32
    # Not-a-number compares as False, and is refused as well.
    if not (largest <= MAX_DIFFERENCE if exact else relative <= MAX_RELATIVE):
        raise GMSAError(
            f"soft tokens, {name}",
            expected=f"at most {MAX_DIFFERENCE} from the published way" if exact
            else f"a relative difference of at most {MAX_RELATIVE} from the published way",
            got=f"{largest:.3g}, relative {relative:.3g}",
            remedy="Speeds of ways that compute different things are not compared; report this model.",
        )  # fmt: skip


def _peaks(
    ways: Mapping[str, _Way], dtypes: Sequence[torch.dtype], given: float | None
) -> tuple[dict[torch.dtype, float], str]:
    """Operations a second of each dtype, and where that is from."""
    compressors = {way.compressor.encoder.dtype: way.compressor for way in ways.values()}
    device = ways[PUBLISHED].compressor.encoder.device
    known = {dtype: known_peak(device, dtype) for dtype in dtypes}
    peaks = {dtype: peak if peak is not None else matmul_rate(compressors[dtype]) for dtype, peak in known.items()}
    source = "matrix product measured in this run" if None in known.values() else "data sheet"
    if given is not None:
        peaks[dtypes[0]], source = given * 1e12, f"{_name(dtypes[0])} as given, others: {source}"
    return peaks, source


def _row(
    way: _Way, timing: Timing, tokens: int, flops: int, difference: tuple[float, float], utilisation: float
) -> CompressRow:
    return CompressRow(
        way=way.name,
        dtype=_name(way.compressor.encoder.dtype),
        seconds=timing.seconds,
        seconds_quartiles=timing.seconds_quartiles,
        tokens_per_second=tokens / timing.seconds,
        speedup=timing.speedup,
        speedup_quartiles=timing.speedup_quartiles,
        tflop=flops / 1e12,
        utilisation=utilisation,
        peak_mib=None if timing.peak_bytes is None else timing.peak_bytes / 2**20,
        max_difference=difference[0],
        relative_difference=difference[1],
        runs=timing.runs,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Timing several ways to do the same in one run, in turn, so that a slow minute of the machine slows all of them."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from gmsa_rag.benchmark.memory_use import peak_memory
from gmsa_rag.errors import InputError

# Products of matrices so large take a current GPU more than ten milliseconds together.
LEAD_SIZE, LEAD_PRODUCTS = 8_192, 12


@dataclass(frozen=True)
class Alternative:
    """One way to do what is measured.

    Attributes:
        name: Of the row; no two alternatives share one.
        run: Does it, once.
        prepare: Called before each `run` and not timed, such as emptying a cache.
        calls: Runs that one time is made of; the time given is that of one. For kernels, which are done before an
            accelerator has been asked for the next one.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    calls: int = 1


@dataclass(frozen=True)
class Timing:
    """How long one alternative took.

    Attributes:
        name: Of the alternative.
        seconds: Median of `runs`.
        seconds_quartiles: First and third quartile of them.
        speedup: Median over the rounds of the baseline's time divided by this one's in the same round; higher is
            faster, 1 for the baseline itself.
        speedup_quartiles: First and third quartile of it.
        peak_bytes: Most memory that one run held beyond what was held before it, see `peak_memory`; None if unknown.
        runs: Seconds of each round.
    """

    name: str
    seconds: float
    seconds_quartiles: tuple[float, float]
    speedup: float
    speedup_quartiles: tuple[float, float]
    peak_bytes: int | None
    runs: tuple[float, ...]


class Clock(Protocol):
    """Times what happens between two calls."""

    def start(self) -> None:
        """Begin, with nothing under way on the device."""

    def stop(self) -> float:
        """Seconds since `start`, all work done."""


class WallClock:
    """Wall-clock time, with the device's queue empty before and after.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: str | torch.device) -> None:
        self._device = torch.device(device)
        self._start = 0.0

    def start(self) -> None:
        """Wait for the device, then begin."""
        synchronise(self._device)
        self._start = time.perf_counter()

    def stop(self) -> float:
        """Wait for the device, then read the clock."""
        synchronise(self._device)
        return time.perf_counter() - self._start


class EventClock:
    """The time a CUDA device itself measures between two events in its queue: for kernels of microseconds.

    The device gets other work first. Meanwhile the host has put into the queue all that is timed, so the time is the
    device's and not that of launching; and caches hold nothing of what is timed.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: str | torch.device) -> None:
        self._device = torch.device(device)
        self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._work = torch.zeros((LEAD_SIZE, LEAD_SIZE), dtype=torch.bfloat16, device=self._device)
        self._result = torch.empty_like(self._work)

    def start(self) -> None:
        """Wait for the device, give it other work, then put the first event into its queue."""
        synchronise(self._device)
        for _ in range(LEAD_PRODUCTS):
            torch.mm(self._work, self._work, out=self._result)
        self._start.record(torch.cuda.current_stream(self._device))

    def stop(self) -> float:
        """Put the second event into the queue and wait for it."""
        self._stop.record(torch.cuda.current_stream(self._device))
        self._stop.synchronize()
        return float(self._start.elapsed_time(self._stop)) / 1_000


def measure(
    alternatives: Sequence[Alternative],
    *,
    baseline: str,
    device: str | torch.device = "cpu",
    repeats: int = 5,
    warmup: int = 1,
    memory: bool = True,
    clock: Clock | None = None,
) -> list[Timing]:
    """Time alternatives in rounds: every one once a round, each round beginning with another one.

    Args:
        alternatives: At least one.
        baseline: Name of the one that the others are compared with.
        device: Where the work is done; it is waited for before and after each run.
        repeats: Rounds that count, >= 1.
        warmup: Rounds before them that do not, >= 0.
        memory: Whether to measure peak memory, in the last round before the timed ones; without warm-up one is added.
        clock: What to time with; None for wall-clock time.

    Returns:
        A timing an alternative, in their order.

    Raises:
        InputError: If there is nothing to measure, names occur twice, or the baseline is not among them.
    """
    _check(alternatives, baseline, repeats)
    timer = clock or WallClock(device)
    runs: dict[str, list[float]] = {alternative.name: [] for alternative in alternatives}
    for _ in range(warmup - 1 if memory else warmup):
        for alternative in alternatives:
            _timed(alternative, timer)
    peaks = {alternative.name: _peak(alternative, device) if memory else None for alternative in alternatives}
    for turn in range(repeats):
        first = turn % len(alternatives)
        for alternative in [*alternatives[first:], *alternatives[:first]]:
            runs[alternative.name].append(_timed(alternative, timer))
    return [_timing(name, seconds, runs[baseline], peaks[name]) for name, seconds in runs.items()]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile of at least one value."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def synchronise(device: str | torch.device) -> None:
    """Wait until the device has done all it was asked for; a CPU always has."""
    if torch.device(device).type not in ("cpu", "meta"):
        torch.accelerator.synchronize(torch.device(device))


def _timed(alternative: Alternative, clock: Clock) -> float:
    """Seconds of one run."""
    if alternative.prepare is not None:
        alternative.prepare()
    clock.start()
    for _ in range(alternative.calls):
        alternative.run()
    return clock.stop() / alternative.calls


def _peak(alternative: Alternative, device: str | torch.device) -> int | None:
    if alternative.prepare is not None:
        alternative.prepare()
    return peak_memory(alternative.run, device)


def _timing(name: str, runs: Sequence[float], baseline: Sequence[float], peak: int | None) -> Timing:
    ratios = [theirs / ours for ours, theirs in zip(runs, baseline, strict=True)]
    return Timing(
        name=name,
        seconds=statistics.median(runs),
        seconds_quartiles=quartiles(runs),
        speedup=statistics.median(ratios),
        speedup_quartiles=quartiles(ratios),
        peak_bytes=peak,
        runs=tuple(runs),
    )


def _check(alternatives: Sequence[Alternative], baseline: str, repeats: int) -> None:
    names = [alternative.name for alternative in alternatives]
    if not names or repeats < 1 or len(set(names)) < len(names) or baseline not in names:
        raise InputError(
            "benchmark",
            expected="alternatives of different names, the baseline among them, and at least 1 repeat",
            got=f"{', '.join(names) or 'none'}; baseline {baseline}; {repeats} repeats",
            remedy="Name each alternative once.",
        )

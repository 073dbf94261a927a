"""`gmsa bench kernel`: group merging fused with its norms, beside the eager composition and a plain copy."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gmsa_rag.benchmark.harness import Alternative, EventClock, Timing, measure
from gmsa_rag.benchmark.report import Bar, plot_bars
from gmsa_rag.errors import GMSAError
from gmsa_rag.kernels.choice import choose_kernels
from gmsa_rag.kernels.reference import RMSNorm, group_means, normed_group_merge_reference
from gmsa_rag.modeling.group_merging import group_bounds, normed_group_merge

COPY = "copy"
# Ragged passages, as retrieval gives them.
LEAST, MOST = 40, 400
EPS = 1e-6
CALLS_ON_GPU = 20
CHECKED_TOKENS = 4_096


@dataclass(frozen=True)
class KernelRow:
    """How fast one operation is.

    Attributes:
        operation: "copy", "mean", "forward" or "backward".
        way: "torch", "eager", "triton" or "reference"; the last two are what the library itself runs here.
        width: Of a state.
        tokens: States merged.
        microseconds: Median.
        microseconds_quartiles: First and third quartile of it.
        megabytes: Least that has to be read and written, 1e6 bytes.
        gigabytes_per_second: These bytes a second, by the median; not what caches and temporaries add.
        share_of_copy: Bytes a second relative to those of copying the states in the same run; 1 is the floor.
        speedup: Median over the rounds of the eager time of the same operation divided by this one's; None where
            there is no eager one.
        runs: Seconds of each round.
    """

    operation: str
    way: str
    width: int
    tokens: int
    microseconds: float
    microseconds_quartiles: tuple[float, float]
    megabytes: float
    gigabytes_per_second: float
    share_of_copy: float
    speedup: float | None
    runs: tuple[float, ...]


@dataclass(frozen=True)
class _Case:
    states: Tensor
    bounds: Tensor  # on the CPU, where the library works them out
    token_norm: RMSNorm
    group_norm: RMSNorm

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.states, self.token_norm.weight, self.group_norm.weight


def measure_kernel(
    width: int,
    tokens: int,
    rate: int,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    repeats: int = 20,
    seed: int = 0,
) -> list[KernelRow]:
    """Check outputs and gradients against float64, then time all operations in turn within one run.

    Args:
        width: Of a state.
        tokens: States, of ragged passages.
        rate: States a group.
        device: On a GPU the library's Triton kernels are measured; on a CPU, where Triton cannot run, its plain path.
        dtype: Of the states.
        repeats: Rounds that count, >= 1.
        seed: Of lengths and values.

    Returns:
        Rows of copy, mean, forward and backward; `way` says what ran.

    Raises:
        GMSAError: If an output or gradient is off.
    """
    place = torch.device(device)
    _check_exact(_make_case(width, min(tokens, CHECKED_TOKENS), rate, place, dtype, seed))
    case = _make_case(width, tokens, rate, place, dtype, seed)
    ours = choose_kernels(place, dtype)
    alternatives = _alternatives(case, ours, CALLS_ON_GPU if place.type == "cuda" else 1)
    clock = EventClock(place) if place.type == "cuda" else None
    timings = measure(alternatives, baseline=COPY, device=place, repeats=repeats, warmup=3, memory=False, clock=clock)
    by_name = {timing.name: timing for timing in timings}
    size = case.states.element_size() * width
    copy_rate = _bytes(COPY, tokens, 0) * size / by_name[COPY].seconds
    groups = len(case.bounds) - 1
    return [_row(timing, by_name, width, tokens, _bytes(timing.name, tokens, groups) * size, copy_rate)
            for timing in timings]  # fmt: skip


def plot_kernel(rows: Sequence[KernelRow], path: Path) -> Path:
    """Draw bytes a second of each operation."""
    bars = [
        Bar(
            f"{row.operation}, {row.way}, {row.width}", row.gigabytes_per_second,
            (1e3 * row.megabytes / row.microseconds_quartiles[1], 1e3 * row.megabytes / row.microseconds_quartiles[0]),
            {"eager": "C7", "torch": "C2"}.get(row.way, "C0"),
        )
        for row in rows
    ]  # fmt: skip
    return plot_bars(bars, path, title="Group merging", x_label="GB per second of the bytes needed")


def _make_case(width: int, tokens: int, rate: int, device: torch.device, dtype: torch.dtype, seed: int) -> _Case:
    drawn, lengths = random.Random(seed), list[int]()
    while (left := tokens - sum(lengths)) > 0:
        lengths.append(min(drawn.randint(LEAST, MOST), left))
    generator = torch.Generator(device).manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype, generator=generator)

    weights = [(1 + values(width) / 8).requires_grad_() for _ in range(2)]
    norms = [RMSNorm(weight, EPS) for weight in weights]
    return _Case(values(tokens, width).requires_grad_(), group_bounds(lengths, [rate] * len(lengths)), *norms)


def _alternatives(case: _Case, ours: str, calls: int) -> list[Alternative]:
    target, bounds = torch.empty_like(case.states), case.bounds.to(case.states.device)
    states, merge = case.states.detach(), _merging(ours)

    def eager() -> tuple[Tensor, Tensor | None]:
        return _eager(case, bounds)

    def fused() -> tuple[Tensor, Tensor | None]:
        return merge(case.states, bounds, case.token_norm, case.group_norm)

    runs: dict[str, Callable[[], object]] = {
        COPY: lambda: target.copy_(states),
        f"mean {ours}": torch.no_grad()(lambda: merge(states, bounds, None, None)),
        "forward eager": torch.no_grad()(eager),
        f"forward {ours}": torch.no_grad()(fused),
        "backward eager": _backward(case, eager),
        f"backward {ours}": _backward(case, fused),
    }
    return [Alternative(name, run, calls=calls) for name, run in runs.items()]


def _merging(ours: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """What `normed_group_merge` calls with borders that it has checked and brought to the device."""
    if ours == "reference":
        return normed_group_merge_reference
    from gmsa_rag.kernels.group_merging import normed_group_merge_triton  # needs Triton

    return normed_group_merge_triton


def _backward(case: _Case, forward: Callable[[], tuple[Tensor, Tensor | None]]) -> Callable[[], object]:
    """The backward pass alone, again and again over one forward pass."""
    outputs = [output for output in forward() if output is not None]
    grads = [torch.ones_like(output) for output in outputs]
    return lambda: torch.autograd.grad(outputs, case.weights, grads, retain_graph=True)


def _eager(case: _Case, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """As transformers' layers and group merging do it one after the other: each rounds to the states' dtype."""
    merged = group_means(_layer_norm(case.states, case.token_norm), bounds)
    return merged, _layer_norm(merged, case.group_norm)


def _layer_norm(states: Tensor, norm: RMSNorm) -> Tensor:
    """A root mean square norm in float32 whose result is rounded before the weight, as Llama's and Qwen's."""
    exact = states.float()
    scaled = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + norm.eps)
    return norm.weight * scaled.to(states.dtype)


def _check_exact(case: _Case) -> None:
    """Outputs and gradients against the reference in float64, within a few roundings of the dtype."""
    ours = normed_group_merge(case.states, case.bounds, case.token_norm, case.group_norm)
    double = [tensor.detach().double().requires_grad_() for tensor in case.weights]
    norms = RMSNorm(double[1], EPS), RMSNorm(double[2], EPS)
    exact = normed_group_merge_reference(double[0], case.bounds.to(case.states.device), *norms)
    found = [tensor for tensor in ours if tensor is not None]
    wanted = [tensor for tensor in exact if tensor is not None]
    found += torch.autograd.grad(found, case.weights, [torch.ones_like(tensor) for tensor in found])
    wanted += torch.autograd.grad(wanted, double, [torch.ones_like(tensor) for tensor in wanted])
    limit = 8 * torch.finfo(case.states.dtype).eps
    for name, ours_, exact_ in zip(("merged", "normed", "states", "weight 1", "weight 2"), found, wanted, strict=True):
        off = ((ours_.double() - exact_).norm() / exact_.norm()).item()
        if not off <= limit:  # also for not-a-number
            raise GMSAError(
                f"group merging, {name}", expected=f"a relative difference from float64 of at most {limit:.2g}",
                got=f"{off:.2g}", remedy="Its speed says nothing; report this device.",
            )  # fmt: skip


def _bytes(name: str, tokens: int, groups: int) -> int:
    """Rows of a state's width that an operation has to read and write."""
    rows = {
        COPY: 2 * tokens,  # read, write
        "mean": tokens + groups,
        "forward": tokens + 2 * groups,  # merged, and the same normed
        "backward": 2 * tokens + 3 * groups,  # states and their gradient; merged and the gradients of both outputs
    }
    return rows[name.partition(" ")[0]]


def _row(
    timing: Timing, timings: dict[str, Timing], width: int, tokens: int, needed: int, copy_rate: float
) -> KernelRow:
    operation, _, way = timing.name.partition(" ")
    eager = timings.get(f"{operation} eager")
    low, high = timing.seconds_quartiles
    return KernelRow(
        operation=operation,
        way=way or "torch",
        width=width,
        tokens=tokens,
        microseconds=1e6 * timing.seconds,
        microseconds_quartiles=(1e6 * low, 1e6 * high),
        megabytes=needed / 1e6,
        gigabytes_per_second=needed / timing.seconds / 1e9,
        share_of_copy=needed / timing.seconds / copy_rate,
        speedup=None if eager is None else timing.speedup / eager.speedup,
        runs=timing.runs,
    )

"""Group merging: the mean of each `rate` consecutive encoder states of one passage."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gmsa_rag.checks import check_rate
from gmsa_rag.errors import ShapeError


def group_merge(hidden: Tensor, bounds: Tensor) -> Tensor:
    """Average each group of consecutive encoder states into one vector.

    Args:
        hidden: Packed encoder states of all passages, (num_tokens, hidden_size), any float dtype.
        bounds: Group borders, (num_groups + 1,), int32 or int64, ascending; group g is hidden[bounds[g]:bounds[g + 1]].

    Returns:
        Merged states, (num_groups, hidden_size), in hidden's dtype, accumulated in float32.

    Raises:
        ShapeError: If the bounds do not cover hidden.

    Source: GMSA, arXiv 2505.12215, "Group Merging".
    """
    _check(hidden, bounds)
    if len(bounds) == 1:
        return hidden.new_zeros((0, hidden.shape[1]))
    rows = torch.arange(len(hidden), device=hidden.device, dtype=bounds.dtype)
    return F.embedding_bag(rows, hidden, bounds[:-1].to(hidden.device), mode="mean")


def group_merge_reference(hidden: Tensor, bounds: Tensor) -> Tensor:
    """The same by slicing group by group in float32: slow, plain, and what the tests compare with."""
    _check(hidden, bounds)
    groups = [hidden[a:b].float().mean(dim=0) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
    return torch.stack(groups).to(hidden.dtype) if groups else hidden.new_zeros((0, hidden.shape[1]))


def group_bounds(lengths: Sequence[int], rates: Sequence[int]) -> Tensor:
    """Borders of all groups in a packed stream of passages; groups never cross passages.

    Args:
        lengths: Tokens of each passage, >= 0; an empty passage has no group.
        rates: Rate of each passage, >= 1.

    Returns:
        (num_groups + 1,), int32, on the CPU. The last group of a passage averages what is left.

    Raises:
        RateError: If a rate is not an int >= 1.
    """
    borders, start = [0], 0
    for length, rate in zip(lengths, rates, strict=True):
        check_rate(rate)
        borders.extend(range(start + rate, start + length, rate))
        if length:
            borders.append(start + length)
        start += length
    return torch.tensor(borders, dtype=torch.int32)


def num_groups(length: int, rate: int) -> int:
    """Soft tokens of a passage: ceil(length / rate)."""
    return -(-length // rate)


def _check(hidden: Tensor, bounds: Tensor) -> None:
    if hidden.dim() != 2:
        raise ShapeError(
            "hidden", expected="(num_tokens, hidden_size)", got=str(tuple(hidden.shape)), remedy="Pack the passages."
        )
    if bounds.dim() != 1 or len(bounds) == 0 or int(bounds[0]) != 0 or int(bounds[-1]) != len(hidden):
        got = f"{bounds[0].item()} to {bounds[-1].item()}" if bounds.dim() == 1 and len(bounds) else str(bounds.shape)
        raise ShapeError("bounds", expected=f"0 to {len(hidden)}", got=got, remedy="Build them with group_bounds.")
    if bool((bounds[1:] <= bounds[:-1]).any()):
        raise ShapeError(
            "bounds", expected="ascending borders", got="an empty group", remedy="Build them with group_bounds."
        )

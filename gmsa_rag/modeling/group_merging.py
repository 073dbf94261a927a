"""Group merging: the mean of each `rate` consecutive encoder states of one passage."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gmsa_rag.checks import check_rate
from gmsa_rag.errors import ShapeError
from gmsa_rag.kernels.choice import choose_kernels
from gmsa_rag.kernels.reference import RMSNorm, group_means, normed_group_merge_reference


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
    if choose_kernels(hidden.device, hidden.dtype) == "triton":
        return normed_group_merge(hidden, bounds, None, None)[0]
    _check(hidden, bounds)
    return group_means(hidden, bounds.to(hidden.device))


def normed_group_merge(
    states: Tensor,
    bounds: Tensor,
    token_norm: RMSNorm | None,
    group_norm: RMSNorm | None,
    kernels: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Group merging in one pass with the norms on both of its sides.

    Args:
        states: Packed states of all passages, (num_tokens, hidden_size), any float dtype.
        bounds: Group borders, as for `group_merge`; on the CPU, so that checking them waits for no GPU.
        token_norm: The encoder's final norm, applied to each state; None where it is applied already, or left out.
        group_norm: The norm with which the LSA's first layer begins, applied to the merged states; None for none.
        kernels: "auto", "triton" or "reference", as for `choose_kernels`; None for what GMSA_KERNELS says.

    Returns:
        Merged states, (num_groups, hidden_size), in the states' dtype, accumulated in float32; the same normed, or
        None. Both are differentiable, in the states and in both norms' weights.

    Raises:
        ConfigError: If Triton is asked for where it cannot run.
        ShapeError: If the bounds do not cover the states, or a weight has not the states' width.

    Source: GMSA, arXiv 2505.12215, "Group Merging".
    """
    _check(states, bounds)
    for norm in (token_norm, group_norm):
        if norm is not None and norm.weight.shape != states.shape[1:]:
            expected, got = str(tuple(states.shape[1:])), str(tuple(norm.weight.shape))
            raise ShapeError("norm weight", expected=expected, got=got, remedy="Take the norms of this model.")
    bounds = to_device(bounds.to(torch.int32), states.device)
    if choose_kernels(states.device, states.dtype, kernels) == "reference":
        return normed_group_merge_reference(states, bounds, token_norm, group_norm)
    from gmsa_rag.kernels.group_merging import normed_group_merge_triton  # needs Triton

    return normed_group_merge_triton(states, bounds, token_norm, group_norm)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; from the CPU to a GPU without waiting for what that is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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

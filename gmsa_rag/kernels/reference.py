"""What the kernels compute, in plain PyTorch: any device, any float dtype, differentiable."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class RMSNorm(NamedTuple):
    """A root mean square norm: x / sqrt(mean(x * x) + eps) * (offset + weight).

    Attributes:
        weight: (hidden_size,), any float dtype.
        eps: What is added to the mean square, > 0.
        offset: What is added to the weight: 1.0 for the Gemma families, 0.0 for the others.
    """

    weight: Tensor
    eps: float
    offset: float = 0.0


def normed_group_merge_reference(
    states: Tensor, bounds: Tensor, token_norm: RMSNorm | None, group_norm: RMSNorm | None
) -> tuple[Tensor, Tensor | None]:
    """Norm each state, average each group, and norm the averages too.

    Args:
        states: Packed states of all passages, (num_tokens, hidden_size).
        bounds: Group borders on the states' device, (num_groups + 1,), int32 or int64, ascending from 0 to num_tokens.
        token_norm: The norm of each state, None for no norm.
        group_norm: The norm of each average, None where no normed averages are wanted.

    Returns:
        The averages, (num_groups, hidden_size), in the states' dtype and computed in float32 or better; the same
        normed, or None.
    """
    # Not rounded between the norm and the mean: this is what the kernels compute, and nearer to the exact value.
    exact = states.to(torch.promote_types(states.dtype, torch.float32))
    merged = group_means(exact if token_norm is None else rms_norm(exact, token_norm), bounds).to(states.dtype)
    if group_norm is None:
        return merged, None
    return merged, rms_norm(merged.to(exact.dtype), group_norm).to(states.dtype)


def rms_norm(x: Tensor, norm: RMSNorm) -> Tensor:
    """Norm the last dimension of x, in x's dtype."""
    scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + norm.eps)
    return x * scale * (norm.offset + norm.weight.to(x.dtype))


def group_means(hidden: Tensor, bounds: Tensor) -> Tensor:
    """Mean of each group, (num_groups, hidden_size), in hidden's dtype and accumulated in float32 or better."""
    if len(bounds) == 1:
        return hidden.new_zeros((0, hidden.shape[1]))
    # Of ten ways to write this in PyTorch the fastest on a CPU, forward and backward.
    rows = torch.arange(len(hidden), device=hidden.device, dtype=bounds.dtype)
    return F.embedding_bag(rows, hidden, bounds[:-1], mode="mean")

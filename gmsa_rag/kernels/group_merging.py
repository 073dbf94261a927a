"""Group merging fused with the norms around it, by Triton: launching, autograd.

One read of the states forward, one read and one write backward. The same input gives the same bits. Importing this
module needs Triton; what it computes is in plain PyTorch in `reference.py`.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from gmsa_rag.kernels.group_merging_kernels import backward_kernel, forward_kernel
from gmsa_rag.kernels.reference import RMSNorm

# Rows of a tile. More rows are more bytes in flight and more registers; these fill a multiprocessor without spilling.
FORWARD_ROWS, BACKWARD_ROWS = 4, 2
# Columns that a warp takes: 32 threads of 8 numbers each, one 128-bit load where a number has 16 bits.
WARP_COLUMNS = 256
FORWARD_WARPS, BACKWARD_WARPS = 8, 16
# Programs of the backward pass, which each sum weight gradients over a run of groups in their registers.
PROGRAMS_PER_MULTIPROCESSOR = 4


def launch_shape(width: int, rows: int, warps: int) -> dict[str, int]:
    """Tile and warps for a width; what both kernels are compiled with."""
    block = triton.next_power_of_2(width)
    return {"block": block, "rows": rows, "num_warps": min(max(block // WARP_COLUMNS, 1), warps)}


def launch_forward(
    states: Tensor, bounds: Tensor, token_norm: RMSNorm | None, group_norm: RMSNorm | None, *, keep_scales: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Merged states, (num_groups, hidden_size), the same normed, and the norms' scales for the backward pass.

    Args:
        states: (num_tokens, hidden_size), its last dimension contiguous, its rows at any distance.
        bounds: (num_groups + 1,), int32, on the same device; trusted.
        token_norm: The norm of each state, or None.
        group_norm: The norm of each merged state, or None.
        keep_scales: Whether the scales are wanted, (num_tokens,) and (num_groups,), float32.
    """
    (num_tokens, width), groups = states.shape, len(bounds) - 1
    merged = states.new_empty((groups, width))
    normed = torch.empty_like(merged) if group_norm else None
    token_scales, group_scales = (
        torch.empty(count, dtype=torch.float32, device=states.device) if norm and keep_scales else None
        for norm, count in ((token_norm, num_tokens), (group_norm, groups))
    )
    if groups:
        with _on(states):
            forward_kernel[(groups,)](
                states, bounds, token_norm and token_norm.weight, group_norm and group_norm.weight, merged, normed,
                token_scales, group_scales, *(norm.eps if norm else 0.0 for norm in (token_norm, group_norm)),
                stride=states.stride(0), width=width, **_offsets(token_norm, group_norm),
                **launch_shape(width, FORWARD_ROWS, FORWARD_WARPS),
            )  # fmt: skip
    return merged, normed, token_scales, group_scales


def launch_backward(
    states: Tensor,
    bounds: Tensor,
    token_norm: RMSNorm | None,
    group_norm: RMSNorm | None,
    kept: tuple[Tensor, Tensor | None, Tensor | None],
    merged_grad: Tensor | None,
    normed_grad: Tensor | None,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the states, of the token norm's weight and of the group norm's weight.

    Args:
        states: As for the forward pass, like the next three.
        bounds: Group borders.
        token_norm: The norm of each state, or None.
        group_norm: The norm of each merged state, or None.
        kept: Merged states and both scales, from the forward pass.
        merged_grad: Gradient of the merged states, (num_groups, hidden_size), or None for zeros.
        normed_grad: Gradient of the normed ones, or None for zeros; one of the two is there.
        wanted: Which of the three gradients to compute; the others are None.
    """
    (num_tokens, width), groups, (merged, token_scales, group_scales) = states.shape, len(bounds) - 1, kept
    per_program = max(1, triton.cdiv(groups, PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(states.device)))
    programs = triton.cdiv(groups, per_program)
    merged_grad, normed_grad = (grad if grad is None else grad.contiguous() for grad in (merged_grad, normed_grad))
    states_grad = states.new_empty((num_tokens, width)) if wanted[0] else None
    token_partials, group_partials = (
        torch.empty((programs, width), dtype=torch.float32, device=states.device) if needed else None
        for needed in (wanted[1] and token_norm, wanted[2] and group_norm and normed_grad is not None)
    )
    if groups:
        with _on(states):
            backward_kernel[(programs,)](
                states, bounds, token_norm and token_norm.weight, group_norm and group_norm.weight, merged,
                token_scales, group_scales, merged_grad, normed_grad, states_grad,
                token_partials, group_partials, groups, per_program,
                stride=states.stride(0), width=width, **_offsets(token_norm, group_norm),
                **launch_shape(width, BACKWARD_ROWS, BACKWARD_WARPS),
            )  # fmt: skip
    return states_grad, _summed(token_partials, token_norm), _summed(group_partials, group_norm)


class _NormedGroupMerge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, bounds: Tensor, token_weight: Tensor | None, group_weight: Tensor | None,
        token_settings: tuple[float, float], group_settings: tuple[float, float], keep_scales: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        norms = _norm(token_weight, token_settings), _norm(group_weight, group_settings)
        merged, normed, *scales = launch_forward(states, bounds, *norms, keep_scales=keep_scales)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(states, bounds, token_weight, group_weight, merged, *scales)
        ctx.settings = token_settings, group_settings
        return merged, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, merged_grad: Tensor | None, normed_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if merged_grad is None and normed_grad is None:
            return (None,) * 7
        states, bounds, token_weight, group_weight, *kept = ctx.saved_tensors
        norms = _norm(token_weight, ctx.settings[0]), _norm(group_weight, ctx.settings[1])
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3]
        grads = launch_backward(states, bounds, *norms, tuple(kept), merged_grad, normed_grad, wanted)
        return grads[0], None, grads[1], grads[2], None, None, None


def normed_group_merge_triton(
    states: Tensor, bounds: Tensor, token_norm: RMSNorm | None, group_norm: RMSNorm | None
) -> tuple[Tensor, Tensor | None]:
    """Norm each state, average each group, and norm the averages too, by the kernels.

    Args:
        states: Packed states of all passages, (num_tokens, hidden_size), float32, float16 or bfloat16, on a GPU.
        bounds: Group borders, (num_groups + 1,), int32, on the same device, ascending from 0 to num_tokens; trusted,
            since checking them would wait for the GPU.
        token_norm: The norm of each state, None for no norm.
        group_norm: The norm of each average, None where no normed averages are wanted.

    Returns:
        The averages, (num_groups, hidden_size), in the states' dtype; the same normed, or None. Both are
        differentiable once, in the states and in both weights.
    """
    weights = [norm.weight.contiguous() if norm else None for norm in (token_norm, group_norm)]
    settings = [(norm.eps, norm.offset) if norm else (0.0, 0.0) for norm in (token_norm, group_norm)]
    learned = any(tensor is not None and tensor.requires_grad for tensor in (states, *weights))
    keep_scales = learned and torch.is_grad_enabled()
    states = states if states.stride(1) == 1 else states.contiguous()
    result: tuple[Tensor, Tensor | None] = _NormedGroupMerge.apply(states, bounds, *weights, *settings, keep_scales)  # type: ignore[no-untyped-call]
    return result


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; two for the interpreter, which has none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _on(states: Tensor) -> torch.cuda.device:
    return torch.cuda.device(states.device if states.is_cuda else -1)  # -1 changes nothing


def _norm(weight: Tensor | None, settings: tuple[float, float]) -> RMSNorm | None:
    return None if weight is None else RMSNorm(weight, *settings)


def _offsets(token_norm: RMSNorm | None, group_norm: RMSNorm | None) -> dict[str, float]:
    norms = {"token_offset": token_norm, "group_offset": group_norm}
    return {name: norm.offset if norm else 0.0 for name, norm in norms.items()}


def _summed(partials: Tensor | None, norm: RMSNorm | None) -> Tensor | None:
    return None if partials is None or norm is None else partials.sum(dim=0).to(norm.weight.dtype)

"""Forward and backward kernel of group merging fused with the norms around it; `group_merging.py` launches them.

    x_t = states[t] * rsqrt(mean(states[t]^2) + token_eps)              each token's norm
    merged[g] = mean of x_t over the group * (token_offset + token_weight)
    normed[g] = merged[g] * rsqrt(mean(merged[g]^2) + group_eps) * (group_offset + group_weight)

The group's tokens are bounds[g] to bounds[g + 1]. Sums are in float32 and in a fixed order, without atomics. Pointers
that a call does not need are None, and what they are for is left out when compiling.
"""

# Triton compiles these functions from their source; Python's types say nothing in them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def _load(places, mask):
    """Numbers in float32, at once: sums in a narrower type would lose what they add."""
    return tl.load(places, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def forward_kernel(
    states, bounds, token_weight, group_weight, merged, normed, token_scales, group_scales, token_eps, group_eps,
    stride: tl.constexpr, width: tl.constexpr, block: tl.constexpr, rows: tl.constexpr,
    token_offset: tl.constexpr, group_offset: tl.constexpr,
):  # fmt: skip
    """One program a group. Weights, `normed` and scales are None where they are not wanted."""
    group = tl.program_id(0).to(tl.int64)
    start, end = tl.load(bounds + group), tl.load(bounds + group + 1)
    columns = tl.arange(0, block)
    inside = columns < width
    total = tl.zeros([block], tl.float32)
    for first in range(start, end, rows):
        tokens = first + tl.arange(0, rows)
        there = tokens < end
        # A stride known when compiling lets loads be 128 bits wide; as an argument they would be 16.
        places = tokens.to(tl.int64)[:, None] * stride + columns[None, :]
        x = _load(states + places, there[:, None] & inside[None, :])
        if token_weight is not None:
            scale = tl.math.rsqrt(tl.sum(x * x, axis=1) / width + token_eps)
            if token_scales is not None:
                tl.store(token_scales + tokens, scale, mask=there)
            x = x * scale[:, None]
        total += tl.sum(x, axis=0)
    mean = total / tl.maximum(end - start, 1).to(tl.float32)
    if token_weight is not None:
        mean = mean * (token_offset + _load(token_weight + columns, inside))
    rounded = mean.to(merged.dtype.element_ty)
    tl.store(merged + group * width + columns, rounded, mask=inside)
    if normed is not None:
        # The norm reads what a layer would read: the merged state as it is stored.
        x = rounded.to(tl.float32)
        scale = tl.math.rsqrt(tl.sum(x * x, axis=0) / width + group_eps)
        if group_scales is not None:
            tl.store(group_scales + group, scale)
        x = x * scale * (group_offset + _load(group_weight + columns, inside))
        tl.store(normed + group * width + columns, x.to(normed.dtype.element_ty), mask=inside)


# Longer than our other functions: its three sums stay in registers from the first group to the last.
@triton.jit(do_not_specialize=["num_groups", "groups_per_program"])
def backward_kernel(
    states, bounds, token_weight, group_weight, merged, token_scales, group_scales, merged_grad, normed_grad,
    states_grad, token_partials, group_partials, num_groups, groups_per_program,
    stride: tl.constexpr, width: tl.constexpr, block: tl.constexpr, rows: tl.constexpr,
    token_offset: tl.constexpr, group_offset: tl.constexpr,
):  # fmt: skip
    """A run of groups a program. Gradients that did not come or are not wanted are None."""
    first_group = tl.program_id(0).to(tl.int64) * groups_per_program
    columns = tl.arange(0, block)
    inside = columns < width
    token_sum = tl.zeros([block], tl.float32)
    group_sum = tl.zeros([block], tl.float32)
    for step in range(tl.minimum(groups_per_program, num_groups - first_group)):
        group = first_group + step
        start, end = tl.load(bounds + group), tl.load(bounds + group + 1)
        places = group * width + columns
        grad = tl.zeros([block], tl.float32)
        if merged_grad is not None:
            grad += _load(merged_grad + places, inside)
        if normed_grad is not None:
            group_scale = tl.load(group_scales + group)
            hat = _load(merged + places, inside) * group_scale
            above = _load(normed_grad + places, inside)
            if group_partials is not None:
                group_sum += above * hat
            above = above * (group_offset + _load(group_weight + columns, inside))
            grad += group_scale * (above - hat * (tl.sum(above * hat, axis=0) / width))
        # Every token of a group has the same gradient of its normed state.
        grad = grad / tl.maximum(end - start, 1).to(tl.float32)
        weighted = grad
        if token_weight is not None:
            weighted = grad * (token_offset + _load(token_weight + columns, inside))
        for first in range(start, end, rows):
            tokens = first + tl.arange(0, rows)
            there = tokens < end
            mask = there[:, None] & inside[None, :]
            row = tokens.to(tl.int64)[:, None]
            d_x = tl.zeros([rows, block], tl.float32) + weighted[None, :]
            if token_weight is not None:
                scale = tl.load(token_scales + tokens, mask=there, other=0.0)[:, None]
                x = _load(states + row * stride + columns[None, :], mask) * scale
                if token_partials is not None:
                    token_sum += grad * tl.sum(x, axis=0)
                d_x = scale * (d_x - x * (tl.sum(d_x * x, axis=1) / width)[:, None])
            if states_grad is not None:
                tl.store(states_grad + row * width + columns[None, :], d_x.to(states_grad.dtype.element_ty), mask=mask)
    own = tl.program_id(0).to(tl.int64) * width + columns
    if token_partials is not None:
        tl.store(token_partials + own, token_sum, mask=inside)
    if group_partials is not None:
        tl.store(group_partials + own, group_sum, mask=inside)

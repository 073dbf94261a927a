"""Run by test_group_merging.py in a process with TRITON_INTERPRET=1: kernels and reference against float64.

The oracle shares no code with either. Everything the kernels write is poisoned with NaN first.
"""

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gmsa_rag.config import GMSAConfig
from gmsa_rag.kernels import group_merging
from gmsa_rag.kernels.group_merging import normed_group_merge_triton
from gmsa_rag.kernels.reference import RMSNorm, normed_group_merge_reference
from gmsa_rag.modeling.compressor import Compressor

# The interpreter cuts float32 to bfloat16 instead of rounding it: one unit in the last place, and no less, is allowed.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
WIDTHS = (64, 100, 384, 896, 1000, 1536, 2048, 3584, 4096)
RATES = (1, 2, 3, 4, 5, 8, 16, 32)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """What is not written stays NaN."""
    empty, new_empty = torch.empty, Tensor.new_empty

    def poisoned(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda tensor: poisoned(empty(tensor.shape, dtype=tensor.dtype)))
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *a, **k: poisoned(new_empty(self, *a, **k)))


def oracle(states, bounds, token, group):
    """Group by group in float64; weights with their offset, eps beside them."""

    def norm(x, weight, eps):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight

    rows = norm(states, *token) if token else states
    merged = torch.stack([rows[a:b].mean(0) for a, b in pairwise(bounds.tolist())])
    return merged, norm(merged, *group) if group else None


def make_case(seed):
    """Everything a case needs, drawn from its seed; widths and rates take turns so that each is met."""
    draw = random.Random(seed)
    width, rate = WIDTHS[seed % len(WIDTHS)], RATES[seed % len(RATES)]
    dtype = draw.choice((torch.float32, torch.float32, torch.bfloat16, torch.float16))
    lengths = [draw.choice((0, 1, rate - 1, rate, rate + 1, 2 * rate + 1)) for _ in range(draw.randint(2, 6))] + [rate]
    borders, start = [0], 0
    for length in lengths:  # empty passages give no group, and the last group takes what is left
        borders += [min(start + first + rate, start + length) for first in range(0, length, rate)]
        start += length
    generator = torch.Generator().manual_seed(seed)
    padding = draw.choice((0, 8, 24))
    storage = torch.randn(start, width + padding, generator=generator) * draw.choice((0.5, 3.0))
    token, group = ((True, True), (True, False), (False, True), (False, False))[draw.choice((0, 0, 0, 1, 2, 3))]
    offsets = draw.choice(((0.0, 0.0), (1.0, 1.0), (0.0, 1.0)))
    weights = [1.0 - offset + 0.3 * torch.randn(width, generator=generator) for offset in offsets]
    norms = [
        RMSNorm(weight.to(dtype), eps, offset) if there else None
        for weight, eps, offset, there in zip(weights, (1e-5, 3e-3), offsets, (token, group), strict=True)
    ]
    above = [torch.randn(len(borders) - 1, width, generator=generator).to(dtype) for _ in range(2)]
    return storage.to(dtype)[:, :width], torch.tensor(borders, dtype=torch.int32), norms, above, draw.choice((0, 1, 2))


def run(merge, states, bounds, norms, above, only):
    """Outputs and gradients by an implementation; `only` picks one output's gradient, 2 for both."""
    states = states.detach().requires_grad_()
    norms = [norm and norm._replace(weight=norm.weight.detach().requires_grad_()) for norm in norms]
    outputs = merge(states, bounds, *norms)
    pairs = [(out, grad) for i, (out, grad) in enumerate(zip(outputs, above, strict=True)) if only in (i, 2)]
    pairs = [(out, grad) for out, grad in pairs if out is not None] or [(outputs[0], above[0])]
    torch.autograd.backward(*zip(*pairs, strict=True))
    return outputs, [states.grad, *(norm and norm.weight.grad for norm in norms)]


def run_oracle(states, bounds, norms, above, only):
    def merge(states, bounds, *norms):
        return oracle(states, bounds, *(norm and (norm.offset + norm.weight, norm.eps) for norm in norms))

    norms = [norm and norm._replace(weight=norm.weight.double()) for norm in norms]
    return run(merge, states.double(), bounds, norms, [grad.double() for grad in above], only)


def compare(got, expected, dtype, tolerance):
    assert (got is None) == (expected is None)
    if got is not None and expected is not None:
        assert got.dtype == dtype and got.shape == expected.shape
        # Relative to the tensor's own size: a weight's gradient is a sum over all tokens.
        got, expected = got.detach().double(), expected.detach()
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("merge", [normed_group_merge_triton, normed_group_merge_reference])
@pytest.mark.parametrize("seed", range(54))
def test_outputs_and_gradients_equal_float64(seed, merge):
    states, bounds, norms, above, only = make_case(seed)
    (outputs, grads), (true_outputs, true_grads) = (
        run(merge, states, bounds, norms, above, only), run_oracle(states, bounds, norms, above, only)
    )  # fmt: skip
    tolerance = TOLERANCE[states.dtype]
    for got, expected, roundings in zip(outputs, true_outputs, (1, 2), strict=True):
        compare(got, expected, states.dtype, roundings * tolerance)
    for got, expected in zip(grads, true_grads, strict=True):
        # The gradient of what was not asked for is None in one and zero in the other.
        expected = expected if got is not None or expected is None or expected.any() else None
        compare(got, expected, states.dtype, 3 * tolerance)


def make_small(dtype=torch.float32, tokens=23, width=72):
    torch.manual_seed(0)
    bounds = torch.tensor([0, 4, 8, 9, 14, 23], dtype=torch.int32)
    norms = RMSNorm(torch.rand(width).to(dtype), 1e-6), RMSNorm(torch.rand(width).to(dtype), 1e-5)
    above = [torch.randn(5, width).to(dtype) for _ in range(2)]
    return torch.randn(tokens, width).to(dtype), bounds, norms, above


def test_two_runs_give_the_same_bits():
    first, second = (run(normed_group_merge_triton, *make_small(), 2) for _ in range(2))
    for a, b in zip([*first[0], *first[1]], [*second[0], *second[1]], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("frozen", [{0}, {1}, {2}, {0, 1}, {1, 2}, {0, 2}])
def test_what_is_frozen_gets_no_gradient_and_changes_none(frozen):
    states, bounds, norms, above = make_small()
    _, expected = run(normed_group_merge_triton, states, bounds, norms, above, 2)
    leaves = [states, norms[0].weight, norms[1].weight]
    leaves = [leaf.detach().requires_grad_(i not in frozen) for i, leaf in enumerate(leaves)]
    norms = [norm._replace(weight=leaf) for norm, leaf in zip(norms, leaves[1:], strict=True)]
    torch.autograd.backward(normed_group_merge_triton(leaves[0], bounds, *norms), above)
    for i, leaf in enumerate(leaves):
        assert leaf.grad is None if i in frozen else torch.equal(leaf.grad, expected[i])


def test_more_programs_than_groups_and_more_groups_than_programs(monkeypatch):
    expected = run(normed_group_merge_triton, *make_small(), 2)[1]
    for count in (1, 2, 100):
        monkeypatch.setattr(group_merging, "multiprocessors", lambda device, count=count: count)
        monkeypatch.setattr(group_merging, "PROGRAMS_PER_MULTIPROCESSOR", 1)
        for got, wanted in zip(run(normed_group_merge_triton, *make_small(), 2)[1], expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_columns_and_rows_at_any_distance():
    states, bounds, norms, _ = make_small()
    expected = normed_group_merge_triton(states, bounds, *norms)
    for strided in (states.T.contiguous().T, torch.randn(23, 3, 72)[:, 1].copy_(states)):
        for got, wanted in zip(normed_group_merge_triton(strided, bounds, *norms), expected, strict=True):
            assert torch.equal(got, wanted)


def test_gradients_come_in_any_layout():
    states, bounds, norms, above = make_small()
    expected = run(normed_group_merge_triton, states, bounds, norms, above, 2)[1]
    scattered = above[0].T.contiguous().T, torch.randn(5, 2, 72)[:, 1].copy_(above[1])
    for got, wanted in zip(
        run(normed_group_merge_triton, states, bounds, norms, scattered, 2)[1], expected, strict=True
    ):
        assert torch.equal(got, wanted)
    ones = [torch.ones(5, 72), torch.ones(1, 1).expand(5, 72)]
    same = [run(normed_group_merge_triton, states, bounds, norms, [one, one], 2)[1] for one in ones]
    assert all(torch.equal(a, b) for a, b in zip(*same, strict=True))


def test_nothing_to_merge():
    _, _, norms, _ = make_small()
    states = torch.zeros(0, 72, requires_grad=True)
    norms = [norm._replace(weight=norm.weight.requires_grad_()) for norm in norms]
    merged, normed = normed_group_merge_triton(states, torch.zeros(1, dtype=torch.int32), *norms)
    assert merged.shape == normed.shape == (0, 72)
    (merged.sum() + normed.sum()).backward()
    assert states.grad.shape == (0, 72) and not norms[0].weight.grad.any() and not norms[1].weight.grad.any()


def test_scales_are_kept_for_training_only(monkeypatch):
    kept = []

    def launch(*args, keep_scales, original=group_merging.launch_forward):
        kept.append(keep_scales)
        return original(*args, keep_scales=keep_scales)

    monkeypatch.setattr(group_merging, "launch_forward", launch)
    states, bounds, norms, _ = make_small()
    normed_group_merge_triton(states, bounds, *norms)
    normed_group_merge_triton(states.requires_grad_(), bounds, *norms)
    with torch.no_grad():
        normed_group_merge_triton(states, bounds, *norms)
    assert kept == [False, True, False]


@pytest.fixture(scope="module")
def compressor():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=40, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    compressor = Compressor.from_base(LlamaForCausalLM(config), GMSAConfig(encoder_layers=2, lsa_layers=1))
    with torch.no_grad():
        for norm in (compressor.encoder.norm, compressor.alignment.block.layers[0].input_layernorm):
            norm.weight.uniform_(0.5, 1.5)
    return compressor


@pytest.mark.parametrize("name", ["forward", "forward_packed"])
def test_a_compressor_computes_with_the_kernels(monkeypatch, compressor, name):
    launches = []

    def launch(*args, original=group_merging.launch_forward, **kwargs):
        launches.append([norm is not None for norm in args[2:]])
        return original(*args, **kwargs)

    monkeypatch.setattr(group_merging, "launch_forward", launch)
    shape, lengths = ((2, 11), [11, 6]) if name == "forward" else ((17,), [11, 6])
    ids, results = torch.arange(22 if name == "forward" else 17).reshape(shape), []
    for kernels in ("auto", "triton"):
        monkeypatch.setenv("GMSA_KERNELS", kernels)
        compressor.zero_grad()
        soft_tokens = getattr(compressor, name)(ids, lengths, [4, 3])
        soft_tokens.square().mean().backward()
        results.append([soft_tokens.detach(), *(parameter.grad.clone() for parameter in compressor.parameters())])
    with torch.inference_mode():
        assert torch.equal(getattr(compressor, name)(ids, lengths, [4, 3]), results[1][0])
    assert launches == [[True, True], [True, True]]
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-4)


def test_the_second_norm_reads_the_merged_states_as_stored():
    states, bounds, norms, _ = make_small(torch.float16)
    merged, normed = normed_group_merge_triton(states, bounds, *norms)
    x = merged.float()
    expected = x * (x.square().mean(-1, keepdim=True) + norms[1].eps).rsqrt() * norms[1].weight.float()
    # Almost every number to the last bit; normed before rounding, a third of them would differ.
    assert (normed == expected.half()).float().mean() > 0.97

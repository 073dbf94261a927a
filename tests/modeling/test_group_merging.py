import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmsa_rag.errors import RateError, ShapeError
from gmsa_rag.modeling.group_merging import group_bounds, group_merge, group_merge_reference, num_groups

PASSAGES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=8)


@given(PASSAGES)
def test_equals_the_reference(passages):
    lengths, rates = [n for n, _ in passages], [r for _, r in passages]
    hidden, bounds = torch.randn(sum(lengths), 5, dtype=torch.float64), group_bounds(lengths, rates)
    merged = group_merge(hidden, bounds)
    assert len(merged) == sum(num_groups(n, r) for n, r in passages)
    torch.testing.assert_close(merged, group_merge_reference(hidden, bounds), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_every_dtype_keeps_its_dtype(dtype, atol):
    hidden, bounds = torch.rand(37, 6).to(dtype), group_bounds([30, 7], [8, 3])
    merged = group_merge(hidden, bounds)
    assert merged.dtype == dtype
    torch.testing.assert_close(merged, group_merge_reference(hidden, bounds), atol=atol, rtol=0)


def test_gradient_spreads_evenly_over_a_group():
    hidden = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: group_merge(h, group_bounds([7], [3])), hidden)
    group_merge(hidden, group_bounds([7], [3])).sum().backward()
    torch.testing.assert_close(hidden.grad[:, 0], torch.tensor([1 / 3] * 6 + [1.0], dtype=torch.float64))


def test_groups_never_cross_passages():
    assert group_bounds([5, 0, 3], [4, 4, 2]).tolist() == [0, 4, 5, 7, 8]
    assert group_bounds([], []).tolist() == [0]
    assert group_merge(torch.zeros(0, 3), group_bounds([0], [4])).shape == (0, 3)


@pytest.mark.parametrize(
    ("hidden", "bounds"),
    [
        (torch.zeros(4), torch.tensor([0, 4])),
        (torch.zeros(4, 2), torch.tensor([0, 3])),
        (torch.zeros(4, 2), torch.tensor([1, 4])),
        (torch.zeros(4, 2), torch.tensor([0, 2, 2, 4])),
        (torch.zeros(4, 2), torch.zeros(0, dtype=torch.int32)),
    ],
)
def test_bounds_that_do_not_cover_are_an_error(hidden, bounds):
    for merge in (group_merge, group_merge_reference):
        with pytest.raises(ShapeError):
            merge(hidden, bounds)


@pytest.mark.parametrize("rate", [0, -1, 2.0, True, "4", None])
def test_a_rate_is_an_int_from_one(rate):
    with pytest.raises(RateError, match="an int >= 1"):
        group_bounds([4], [rate])

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gmsa_rag.inference.batching import token_budget_batches


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 120), st.booleans())
def test_each_item_once_longest_first_within_the_budget_and_no_batch_to_spare(lengths, budget, padded):
    batches = token_budget_batches(lengths, budget, padded=padded)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)

    def size(batch):
        return lengths[batch[0]] * len(batch) if padded else sum(lengths[index] for index in batch)

    assert all(size(batch) <= budget or len(batch) == 1 for batch in batches)
    for batch, following in pairwise(batches):
        assert size([*batch, following[0]]) > budget


def test_packed_batches_hold_more_than_padded_ones():
    lengths = [100, 60, 40, 30, 10]
    assert token_budget_batches(lengths, 240) == [[0, 1], [2, 3, 4]]
    assert token_budget_batches(lengths, 240, padded=False) == [[0, 1, 2, 3, 4]]

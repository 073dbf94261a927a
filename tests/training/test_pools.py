import random
from itertools import islice

import pytest
import torch

from gmsa_rag.training.examples import Passage, Segment, collate
from gmsa_rag.training.pools import Place, Pools, stream
from gmsa_rag.training.recipe import Optimisation

# torch says so where a machine has fewer cores than workers; the batches are the same.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def draw(rng):
    def ids(count):
        return [rng.randrange(6, 400) for _ in range(count)]

    return [Segment([0]), Passage(ids(rng.randint(4, 20)), 4), Segment(ids(rng.randint(1, 9)), learn=True)]


def pools(phase=0, rank=0, taught=False, **settings):
    defaults = {"steps": 1, "batch_tokens": 120, "pool": 12, "seed": 3}
    return Pools(draw, Optimisation(**(defaults | settings)), 48, phase, rank, taught)


def rows(pairs):
    """What batches hold, comparable."""
    return [(batch.input_ids.tolist(), batch.window_ids.tolist(), batch.targets.tolist()) for batch, _ in pairs]


def first(count, of, place=None):
    return rows(islice(stream(of, place or Place()), count))


def test_a_pool_is_the_same_each_time_and_the_next_is_another():
    assert rows(pools()[0]) == rows(pools()[0])
    assert rows(pools()[0]) != rows(pools()[1])
    assert len(pools()[0]) > 2


@pytest.mark.parametrize("other", [{"rank": 1}, {"phase": 1}, {"seed": 4}])
def test_ranks_phases_and_seeds_draw_other_examples(other):
    assert rows(pools()[0]) != rows(pools(**other)[0])


def test_worker_processes_change_nothing():
    assert first(20, pools(workers=2)) == first(20, pools())


def test_batches_follow_pool_by_pool():
    expected = [row for pool in range(3) for row in rows(pools()[pool])]
    assert first(len(expected), pools()) == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("used", [1, 5, 11])
def test_a_stream_goes_on_from_a_place(used, workers):
    place = Place()
    before = first(used, pools(), place)
    assert before + first(9, pools(workers=workers), Place(place.pool, place.used)) == first(used + 9, pools())


def test_the_place_counts_batches_of_a_pool():
    of, place = pools(), Place()
    batches = stream(of, place)
    for _ in range(len(of[0])):
        next(batches)
    assert (place.pool, place.used) == (0, len(of[0]))
    next(batches)
    assert (place.pool, place.used) == (1, 1)


def test_a_teacher_gets_the_same_examples_as_text():
    rng, of = random.Random("3 0 0"), pools(taught=True)
    examples = {tuple(example[2].ids): example for example in (draw(rng) for _ in range(12))}
    for batch, texts in of[0]:
        assert texts.targets.tolist() == batch.targets.tolist()
        assert not len(texts.soft_positions) and not texts.window_lengths
        for row, labels in zip(texts.input_ids.tolist(), texts.labels, strict=True):
            example = examples[tuple(labels[labels >= 0].tolist())]
            expected = [i for part in example for i in part.ids]
            assert row == expected + [0] * (len(row) - len(expected))
    assert all(texts is None for _, texts in pools()[0])


def test_lengths_are_padded_to_a_multiple():
    for batch, _ in pools(pad_to=16)[0]:
        assert batch.input_ids.shape[1] % 16 == batch.window_ids.shape[1] % 16 == 0


def test_a_batch_moves_to_a_device_whole():
    batch = collate([draw(random.Random(0))], 48).to(torch.device("meta"))
    assert batch.input_ids.is_meta and batch.soft_positions.is_meta and batch.targets.is_meta
    assert batch.window_rates == [4]

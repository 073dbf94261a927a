import random

import numpy as np
import pytest
import torch

from gmsa_rag.config import GMSAConfig
from gmsa_rag.evaluation.small_base import BlurredText, Reading
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.training.examples import Passage, Segment


@pytest.fixture(scope="module")
def reading(tokenizer) -> Reading:
    stream = np.random.default_rng(1).integers(20, 390, 4000).astype(np.uint16)
    return Reading(TokenCodec(tokenizer), GMSAConfig(window=64, restore_template="{memory}<|restore|>"), stream)


@torch.no_grad()
def test_blurred_text_is_averaged_embeddings_of_each_passage_alone(make_base):
    decoder = make_base()
    ids = torch.tensor([[7, 8, 9, 10, 11], [20, 21, 22, 0, 0]])
    found = BlurredText(decoder)(ids, [5, 3], [2, 4])
    groups = [[7, 8], [9, 10], [11], [20, 21, 22]]
    expected = torch.stack([decoder.get_input_embeddings().weight[group].mean(dim=0) for group in groups])
    torch.testing.assert_close(found, expected)


def test_short_passages_are_restated_as_text_and_no_end_is_learned(reading):
    draw = reading.sharp(0)
    for seed in range(20):
        example = draw(random.Random(seed))
        *before, last = [part for part in example if len(part.ids)]
        assert all(isinstance(part, Segment) for part in example)
        assert last.learn and 3 <= len(last.ids) <= 6 and reading.codec.end not in last.ids
        assert last.ids == before[1].ids and not any(part.learn for part in before)


def test_long_passages_end(reading):
    ends = [reading.blurred(3)(random.Random(seed))[-1].ids[-1] for seed in range(20)]
    assert set(ends) == {reading.codec.end}


def test_blurred_passages_are_read_at_every_rate(reading):
    drawn = [
        part for seed in range(40) for part in reading.blurred(1)(random.Random(seed)) if isinstance(part, Passage)
    ]
    assert {part.rate for part in drawn} == {1, 2, 4}
    assert max(len(part.ids) for part in drawn) <= 12

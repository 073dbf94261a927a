import pytest
import torch

from gmsa_rag.config import GMSAConfig
from gmsa_rag.evaluation.baselines import ClosedBookObjective, FullTextObjective, TruncatedText, without_passages
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.training.examples import IGNORED, Passage, Segment, as_text, collate
from gmsa_rag.training.objective import Objective


@pytest.fixture(scope="module")
def decoder(make_base):
    return make_base()


@pytest.fixture(scope="module")
def batch():
    """Two examples: a memory between text, and one at the beginning of what is learned."""
    first = [Segment([5, 6]), Passage([7, 8, 9, 10, 11], 2), Segment([12]), Segment([13, 14], learn=True)]
    second = [Segment([5]), Passage([20, 21, 22], 4), Segment([23, 24, 25], learn=True)]
    return [first, second], collate([first, second], 32)


@torch.no_grad()
def test_truncated_text_is_the_first_tokens_in_as_many_positions(decoder):
    cut = TruncatedText(decoder)
    ids = torch.tensor([[7, 8, 9, 10, 11], [20, 21, 22, 0, 0]])
    expected = decoder.get_input_embeddings()(torch.tensor([7, 8, 9, 20]))
    assert torch.equal(cut(ids, [5, 3], [2, 4]), expected)
    merging = Compressor.from_base(decoder, GMSAConfig(encoder_layers=1, lsa_layers=1))
    assert cut(ids, [5, 3], [2, 4]).shape == merging(ids, [5, 3], [2, 4]).shape


@torch.no_grad()
def test_readers_learn_from_text_and_from_none(decoder, batch):
    examples, with_memories = batch
    texts = collate([as_text(example) for example in examples], 32)
    full = FullTextObjective(decoder)(with_memories, texts)
    torch.testing.assert_close(full.mean, Objective(decoder, None)(texts).mean)
    emptied = [[part for part in example if isinstance(part, Segment)] for example in examples]
    closed = ClosedBookObjective(decoder)(with_memories)
    torch.testing.assert_close(closed.mean, Objective(decoder, None)(collate(emptied, 32)).mean)
    assert full.num_learned == closed.num_learned == 5


def test_a_batch_without_passages_is_that_of_emptied_examples(batch):
    examples, with_memories = batch
    expected = collate([[part for part in example if isinstance(part, Segment)] for example in examples], 32)
    found = without_passages(with_memories)
    for name in ("input_ids", "labels", "predicting", "targets"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.input_ids.tolist() == [[5, 6, 12, 13, 14], [5, 23, 24, 25, 0]]
    assert found.labels[1].tolist() == [IGNORED, 23, 24, 25, IGNORED]
    assert len(found.soft_positions) == len(found.window_lengths) == 0

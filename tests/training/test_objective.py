import random

import pytest
import torch
import torch.nn.functional as F

from gmsa_rag.inference.engine import GMSA
from gmsa_rag.training.examples import IGNORED, Passage, Segment, batches, collate, num_positions
from gmsa_rag.training.objective import compute_loss
from tests.conftest import FAMILIES


def draw(rng: random.Random) -> list[Passage | Segment]:
    def ids(n):
        return [rng.randrange(6, 400) for _ in range(n)]

    return [
        Segment([0, *ids(rng.randint(0, 4))]),
        Passage(ids(rng.randint(1, 60)), rng.choice([1, 3, 4, 8])),
        Segment(ids(3)),
        Passage(ids(rng.randint(0, 9)), 2),
        Segment(ids(rng.randint(1, 9)), learn=True),
    ]


def test_a_batch_holds_what_its_examples_say():
    examples = [draw(random.Random(seed)) for seed in range(5)]
    batch = collate(examples, window=48)
    assert batch.input_ids.shape == (5, max(map(num_positions, examples)))
    learned = [i for e in examples for part in e if isinstance(part, Segment) and part.learn for i in part.ids]
    assert batch.labels[batch.labels != IGNORED].tolist() == learned
    assert sum(batch.window_lengths) == sum(len(p.ids) for e in examples for p in e if isinstance(p, Passage))
    assert max(batch.window_lengths) <= 48
    assert len(batch.soft_positions) == sum(
        -(-len(p.ids) // p.rate) for e in examples for p in e if isinstance(p, Passage)
    )
    assert batch.input_ids.flatten()[batch.soft_positions].eq(0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_equals_single_examples_read_as_inference_does(make_base, tokenizer, family):
    gmsa = GMSA.from_base(make_base(family), tokenizer, encoder_layers=2, window=48)
    examples = [draw(random.Random(seed)) for seed in range(6)]
    with torch.no_grad():
        loss = compute_loss(gmsa.decoder, gmsa.compressor, collate(examples, 48))
        table, logits, targets = gmsa.decoder.get_input_embeddings(), [], []
        for example in examples:
            pieces, labels = [], []
            for part in example:
                if isinstance(part, Passage):
                    for start in range(0, len(part.ids), 48 // part.rate * part.rate):
                        ids = part.ids[start : start + 48 // part.rate * part.rate]
                        pieces.append(gmsa.compressor(torch.tensor([ids]), [len(ids)], [part.rate]))
                        labels += [IGNORED] * len(pieces[-1])
                else:
                    pieces.append(table(torch.tensor(part.ids, dtype=torch.long)))
                    labels += part.ids if part.learn else [IGNORED] * len(part.ids)
            out = gmsa.decoder(inputs_embeds=torch.cat(pieces)[None]).logits[0, :-1]
            learned = torch.tensor(labels[1:]) != IGNORED
            logits.append(out[learned])
            targets.append(torch.tensor(labels[1:])[learned])
    logits, targets = torch.cat(logits), torch.cat(targets)
    torch.testing.assert_close(loss.mean, F.cross_entropy(logits, targets), atol=1e-5, rtol=0)
    assert loss.num_learned == len(targets)
    assert loss.num_correct == int((logits.argmax(-1) == targets).sum())


def test_gradients_reach_compressor_and_decoder(make_base, tokenizer):
    gmsa = GMSA.from_base(make_base(), tokenizer, encoder_layers=2)
    compute_loss(gmsa.decoder, gmsa.compressor, collate([draw(random.Random(1))], 48)).mean.backward()
    for module in (gmsa.compressor.encoder.layers, gmsa.compressor.alignment, gmsa.decoder.model.layers):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_batches_hold_every_example_within_the_budget():
    drawn = []

    def make(rng):
        drawn.append(draw(rng))
        return drawn[-1]

    groups = list(batches(make, random.Random(3), tokens=200, pool=64))
    assert len(drawn) == 64 == sum(map(len, groups))
    for group in groups:
        cost = max(num_positions(e) + sum(len(p.ids) for p in e if isinstance(p, Passage)) for e in group)
        assert len(group) == 1 or cost * len(group) <= 200

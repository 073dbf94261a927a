import itertools
import random
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from gmsa_rag.errors import DependencyError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.training import objective
from gmsa_rag.training.examples import IGNORED, Budget, Passage, Segment, as_text, batches, collate, num_positions
from gmsa_rag.training.objective import Objective
from gmsa_rag.training.recipe import Distillation
from tests.conftest import FAMILIES

LIGER = "liger_kernel.transformers.fused_linear_cross_entropy"


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
        loss = Objective(gmsa.decoder, gmsa.compressor)(collate(examples, 48))
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
    Objective(gmsa.decoder, gmsa.compressor)(collate([draw(random.Random(1))], 48)).mean.backward()
    for module in (gmsa.compressor.encoder.layers, gmsa.compressor.alignment, gmsa.decoder.model.layers):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_batches_hold_every_example_within_the_budget(weight):
    drawn = []

    def make(rng):
        drawn.append(draw(rng))
        return drawn[-1]

    groups = list(batches(make, random.Random(3), Budget(200, 48, weight), pool=64))
    assert len(drawn) == 64 == sum(map(len, groups))
    sizes = []
    for group in groups:
        batch = collate(group, 48)
        sizes.append(batch.input_ids.numel() + weight * batch.window_ids.numel())
        assert len(group) == 1 or sizes[-1] <= 200
    assert sum(sizes) / len(sizes) > 120
    ends = sorted((min(map(num_positions, group)), max(map(num_positions, group))) for group in groups)
    assert all(longest <= shortest for (_, longest), (shortest, _) in itertools.pairwise(ends))


def gradients(module, loss):
    module.zero_grad()
    loss.mean.backward()
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_chunks_of_logits_change_neither_loss_nor_gradients(make_base, tokenizer, monkeypatch, rows):
    gmsa = GMSA.from_base(make_base().double(), tokenizer, encoder_layers=2)
    module = Objective(gmsa.decoder, gmsa.compressor)
    batch = collate([draw(random.Random(seed)) for seed in range(6)], 48)
    logits = gmsa.decoder.get_output_embeddings()(objective.read(gmsa.decoder, gmsa.compressor, batch))
    plain = objective.Loss(F.cross_entropy(logits, batch.targets), 0, torch.zeros(()))
    expected = gradients(module, plain)
    monkeypatch.setattr(objective, "CHUNK_LOGITS", rows * len(tokenizer))
    loss = module(batch)
    assert len(batch.targets) % 3 and len(batch.targets) > 9  # a last chunk that is not full
    torch.testing.assert_close(loss.mean.double(), plain.mean, atol=0, rtol=1e-6)
    assert int(loss.num_correct) == int((logits.argmax(-1) == batch.targets).sum())
    found = gradients(module, loss)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-7, rtol=1e-5)


def by_hand(student, teacher, weight, temperature, targets):
    """The distillation loss written out, token by token, in float64."""
    total = 0.0
    for own, taught, target in zip(student.double(), teacher.double(), targets.tolist(), strict=True):
        wanted, found = (torch.exp(x / temperature) / torch.exp(x / temperature).sum() for x in (taught, own))
        divergence = float((wanted * (wanted.log() - found.log())).sum()) * temperature**2
        plain = -float((torch.exp(own) / torch.exp(own).sum())[target].log())
        total += weight * divergence + (1 - weight) * plain
    return total / len(targets)


@pytest.mark.parametrize("chunk", [2**26, 900])
@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 2.5)])
def test_distillation_is_a_mix_with_a_teacher_that_reads_text(
    make_base, tokenizer, monkeypatch, weight, temperature, chunk
):
    monkeypatch.setattr(objective, "CHUNK_LOGITS", chunk)
    gmsa, teacher = GMSA.from_base(make_base(), tokenizer, encoder_layers=2), make_base("qwen3")
    examples = [draw(random.Random(seed)) for seed in range(4)]
    batch, texts = collate(examples, 48), collate([as_text(example) for example in examples], 48)
    module = Objective(gmsa.decoder, gmsa.compressor, teacher=teacher, distillation=Distillation(weight, temperature))
    loss = module(batch, texts)
    taught = []
    with torch.no_grad():
        for example in examples:
            ids, learned = [i for part in example for i in part.ids], len(example[-1].ids)
            taught.append(teacher(input_ids=torch.tensor([ids])).logits[0, -learned - 1 : -1])
        own = gmsa.decoder.get_output_embeddings()(objective.read(gmsa.decoder, gmsa.compressor, batch))
    expected = by_hand(own, torch.cat(taught), weight, temperature, batch.targets)
    assert float(loss.mean.detach()) == pytest.approx(expected, rel=1e-5)
    loss.mean.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in gmsa.decoder.model.layers.parameters())


def test_a_teacher_that_agrees_teaches_nothing(make_base):
    decoder = make_base()
    texts = collate([as_text(draw(random.Random(1)))], 48)
    loss = Objective(decoder, teacher=make_base(), distillation=Distillation(weight=1.0))(texts, texts)
    assert float(loss.mean.detach()) == pytest.approx(0.0, abs=1e-5)


def test_gemma_2_caps_its_logits(make_base):
    decoder = make_base("gemma2", final_logit_softcapping=1.5)
    ids = [0, *range(30, 60)]
    loss = Objective(decoder, None)(collate([[Segment(ids[:1]), Segment(ids[1:], learn=True)]], 48))
    logits = decoder(input_ids=torch.tensor([ids])).logits[0, :-1]
    assert logits.abs().max() < 1.5
    torch.testing.assert_close(loss.mean, F.cross_entropy(logits, torch.tensor(ids[1:])), atol=1e-5, rtol=0)


def test_a_batch_without_learned_tokens_has_no_loss_and_no_gradient(make_base, tokenizer):
    gmsa = GMSA.from_base(make_base(), tokenizer, encoder_layers=2)
    module = Objective(gmsa.decoder, gmsa.compressor)
    loss = module(collate([[Segment([0, 7]), Passage([8, 9, 10], 2)]], 48))
    assert (float(loss.mean.detach()), loss.num_learned, int(loss.num_correct)) == (0.0, 0, 0)
    assert all(gradient.eq(0).all() for gradient in gradients(module, loss).values())


def test_what_stands_first_is_not_learned(make_base):
    batch = collate([[Segment([9, 8, 7], learn=True)]], 48)
    assert batch.targets.tolist() == [8, 7] and batch.predicting.tolist() == [0, 1]
    assert Objective(make_base(), None)(batch).num_learned == 2


@pytest.fixture
def no_cached_kernel():
    objective._liger_loss.cache_clear()
    yield
    objective._liger_loss.cache_clear()


def test_liger_without_its_package_is_a_typed_error(make_base, monkeypatch, no_cached_kernel):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(DependencyError, match=r"gmsa-rag\[liger\]"):
        Objective(make_base(), cross_entropy="liger")(collate([[Segment([1, 2], learn=True)]], 48))


def test_liger_is_given_what_its_kernel_takes(make_base, monkeypatch, no_cached_kernel):
    class Kernel(nn.Module):
        """What the kernel computes, after its documentation."""

        def __init__(self, reduction, softcap):
            super().__init__()
            self.reduction, self.softcap = reduction, softcap

        def forward(self, lin_weight, _input, target, bias=None):
            logits = F.linear(_input, lin_weight, bias)
            return F.cross_entropy(torch.tanh(logits / self.softcap) * self.softcap, target, reduction=self.reduction)

    module = ModuleType(LIGER)
    module.LigerFusedLinearCrossEntropyLoss = Kernel
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, LIGER, module)
    decoder = make_base("gemma2", final_logit_softcapping=1.5)
    batch = collate([as_text(draw(random.Random(seed))) for seed in range(3)], 48)
    expected, found = (Objective(decoder, cross_entropy=kind)(batch) for kind in ("chunked", "liger"))
    torch.testing.assert_close(found.mean, expected.mean)
    assert (found.num_learned, int(found.num_correct)) == (expected.num_learned, int(expected.num_correct))


def test_layers_of_compressor_and_decoder_are_sharded_one_by_one(make_base, tokenizer):
    gmsa = GMSA.from_base(make_base(), tokenizer, encoder_layers=2, lsa_layers=1)
    module = Objective(gmsa.decoder, gmsa.compressor)
    plugin = SimpleNamespace(auto_wrap_policy=transformer_auto_wrap_policy, transformer_cls_names_to_wrap=None)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, module)
    wrapped = {id(found) for found in module.modules() if policy(found)}
    models = (gmsa.decoder.model, gmsa.compressor.encoder, gmsa.compressor.alignment.block)
    assert wrapped == {id(layer) for model in models for layer in model.layers}
    assert len(wrapped) == 3 + 2 + 1


def test_a_teacher_stays_in_evaluation_mode(make_base):
    module = Objective(make_base(), teacher=make_base(), distillation=Distillation())
    module.train()
    assert module.decoder.training and not module.teacher.training
    assert not module.eval().decoder.training


def test_a_batch_without_passages_runs_the_compressor_all_the_same(make_base, tokenizer):
    gmsa = GMSA.from_base(make_base(), tokenizer, encoder_layers=2)
    module, ran = Objective(gmsa.decoder, gmsa.compressor), []
    for layer in (*gmsa.compressor.encoder.layers, *gmsa.compressor.alignment.block.layers):
        layer.register_forward_hook(lambda *_: ran.append(1))
    batch = collate([as_text(draw(random.Random(seed))) for seed in range(3)], 48)
    loss = module(batch)
    assert len(ran) == 3  # or processes whose batches hold passages would wait for this one
    torch.testing.assert_close(loss.mean, Objective(gmsa.decoder, None)(batch).mean)
    found = gradients(module, loss)
    assert all(found[name].eq(0).all() for name in found if ".layers." in name and name.startswith("compressor."))
    assert any(found[name].ne(0).any() for name in found if name.startswith("decoder."))


def test_what_accelerate_parts_is_shared_again(make_base, tokenizer):
    gmsa = GMSA.from_base(make_base(tie_word_embeddings=True), tokenizer, encoder_layers=1, window=48)
    whole = Objective(gmsa.decoder, gmsa.compressor, teacher=make_base(tie_word_embeddings=True))
    ties = objective._shared_names(whole)
    assert {"decoder.model.embed_tokens.weight", "decoder.lm_head.weight"} <= set(ties[0])
    assert any("compressor" in name for name in ties[0]) and any("teacher" in name for name in ties[1])
    parted = whole.to("meta")  # as where it shards weights
    assert objective._shared_names(parted) != ties
    parted.tie_weights()
    assert objective._shared_names(parted) == ties

"""Norms computed in group merging, in the place of the layers that hold them, by the plain reference of the kernels."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from gmsa_rag.config import GMSAConfig
from gmsa_rag.evaluation.variants import make_compressor
from gmsa_rag.kernels import choice
from gmsa_rag.modeling import compressor as compressor_module
from gmsa_rag.modeling.alignment import cast_weights
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.modeling.fusing import OFFSETS, as_rms_norm, final_norm, first_norm, without_final_norm
from gmsa_rag.modeling.lora import LoraSettings, add_lora
from tests.conftest import FAMILIES

LENGTHS, RATES = [19, 7, 1, 12], [4, 2, 8, 5]


@pytest.fixture
def merges(monkeypatch):
    """Which norms each fused merge was given."""
    calls = []
    original = compressor_module.normed_group_merge

    def record(states, bounds, token_norm, group_norm):
        calls.append((token_norm is not None, group_norm is not None))
        return original(states, bounds, token_norm, group_norm)

    monkeypatch.setattr(compressor_module, "normed_group_merge", record)
    return calls


def make(make_base, family="llama", **settings):
    config = GMSAConfig(encoder_layers=2, lsa_layers=1, **settings)
    compressor = Compressor.from_base(make_base(family), config).eval()
    with torch.no_grad():  # norms start as ones or zeros, which would hide a wrong weight
        for name, parameter in compressor.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return compressor


def both(monkeypatch, compute):
    """What a computation gives with the layers' own norms, and with fused ones."""
    monkeypatch.delenv("GMSA_KERNELS", raising=False)
    plain = compute()
    monkeypatch.setenv("GMSA_KERNELS", "reference")
    return plain, compute()


@pytest.mark.parametrize("encoder_norm", [True, False])
@pytest.mark.parametrize("lsa_norm", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_soft_tokens_stay(make_base, monkeypatch, merges, family, encoder_norm, lsa_norm):
    compressor = make(make_base, family, encoder_norm=encoder_norm, lsa_norm=lsa_norm)
    ids = torch.randint(0, 400, (4, 19))
    before = {name: tensor.clone() for name, tensor in compressor.state_dict().items()}
    with torch.no_grad():
        plain, fused = both(monkeypatch, lambda: compressor(ids, LENGTHS, RATES))
    assert merges == [(encoder_norm, True)]
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=0)
    after = compressor.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_packed_soft_tokens_stay(make_base, monkeypatch, merges):
    compressor = make(make_base, "qwen3")
    ids = torch.randint(0, 400, (sum(LENGTHS),))
    with torch.no_grad():
        plain, fused = both(monkeypatch, lambda: compressor.forward_packed(ids, LENGTHS, RATES))
    assert merges == [(True, True)]
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=0)


def recompute_activations(model):
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:  # transformers before 5.23 knows it by the older name alone
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_stay(make_base, monkeypatch, merges, family, checkpointing, lora):
    ids = torch.randint(0, 400, (4, 19))

    def compute():
        torch.manual_seed(5)
        compressor = make(make_base, family).train()
        if lora:
            add_lora(compressor.encoder, LoraSettings(rank=2, dropout=0.0))
        if checkpointing:
            for model in (compressor.encoder, compressor.alignment.block):
                recompute_activations(model)
        compressor(ids, LENGTHS, RATES).square().mean().backward()
        return {name: parameter.grad for name, parameter in compressor.named_parameters()}

    plain, fused = both(monkeypatch, compute)
    assert merges == [(True, True)] and plain.keys() == fused.keys()
    assert any(grad is not None for grad in plain.values())
    for name, grad in plain.items():
        assert (grad is None) == (fused[name] is None), name
        if grad is not None:
            torch.testing.assert_close(fused[name], grad, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_threads_share_a_compressor(make_base, monkeypatch):
    compressor = make(make_base)
    batches = [torch.randint(0, 400, (4, 19)) for _ in range(16)]

    def compute(ids):
        with torch.no_grad():
            return compressor(ids, LENGTHS, RATES), compressor.forward_packed(ids.flatten(), [19] * 4, RATES)

    monkeypatch.setenv("GMSA_KERNELS", "reference")
    alone = [compute(ids) for ids in batches]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(compute, batches))
    for got, expected in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_bfloat16_is_nearer_to_the_exact_value(make_base, monkeypatch):
    compressor = make(make_base)
    ids = torch.randint(0, 400, (4, 19))
    with torch.no_grad():
        exact = compressor(ids, LENGTHS, RATES)
        cast_weights(compressor, torch.bfloat16)
        plain, fused = both(monkeypatch, lambda: compressor(ids, LENGTHS, RATES))
    assert fused.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(fused.float(), exact, atol=0.1, rtol=0.1)
    assert not torch.equal(fused, plain)


def test_a_norm_of_another_dtype_stays_with_its_layer(make_base, monkeypatch, merges):
    compressor = make(make_base)
    cast_weights(compressor.encoder, torch.bfloat16)
    ids = torch.randint(0, 400, (4, 19))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain, fused = both(monkeypatch, lambda: compressor(ids, LENGTHS, RATES))
    assert merges == [(True, False)] and fused.dtype == plain.dtype
    torch.testing.assert_close(fused, plain, atol=0.1, rtol=0.1)


def test_without_an_lsa_the_token_norm_alone_is_fused(make_base, monkeypatch, merges):
    compressor = make_compressor("without_lsa", make_base(), GMSAConfig(encoder_layers=2)).eval()
    ids = torch.randint(0, 400, (4, 19))
    with torch.no_grad():
        plain, fused = both(monkeypatch, lambda: compressor(ids, LENGTHS, RATES))
    assert merges == [(True, False)]
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=0)


class CenteredNorm(nn.LayerNorm):
    pass


class Sharded(nn.Parameter):
    __torch_function__ = torch._C._disabled_torch_function_impl


@pytest.mark.parametrize("hidden", ["unknown class", "hook", "own forward", "compiled", "sharded"])
def test_norms_that_cannot_be_taken_over_are_left_to_their_layers(make_base, monkeypatch, merges, hidden):
    compressor = make(make_base)
    norms = {"norm": compressor.encoder, "input_layernorm": compressor.alignment.block.layers[0]}
    for name, owner in norms.items():
        norm = getattr(owner, name)
        if hidden == "unknown class":
            setattr(owner, name, CenteredNorm(32))
        elif hidden == "hook":
            norm.register_forward_hook(lambda module, inputs, output: output * 2)
        elif hidden == "own forward":
            norm.forward = lambda hidden_states: hidden_states * 3
        elif hidden == "compiled":
            owner.compile(backend="eager")
        else:
            norm.weight = Sharded(norm.weight.data)
    ids = torch.randint(0, 400, (4, 19))
    with torch.no_grad():
        plain, fused = both(monkeypatch, lambda: compressor(ids, LENGTHS, RATES))
    assert merges == [(False, False)]
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_known_and_its_offset_right(make_base, family):
    model = make_base(family).model
    for module, norm in ((model.norm, final_norm(model)), (model.layers[0].input_layernorm, first_norm(model))):
        assert norm is not None and norm.weight is module.weight and norm.offset == OFFSETS[type(module).__name__]
        x = torch.randn(5, 32)
        with torch.no_grad():
            module.weight.uniform_(-0.5, 0.5)
            expected = x * (x.pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt() * (norm.offset + norm.weight)
            torch.testing.assert_close(module(x), expected, atol=1e-6, rtol=1e-6)
    assert as_rms_norm(nn.LayerNorm(32)) is None and as_rms_norm(nn.Identity()) is None and as_rms_norm(None) is None


def test_a_view_shares_everything_but_the_norm(make_base):
    encoder: PreTrainedModel = Compressor.from_base(make_base(), GMSAConfig(encoder_layers=2)).encoder
    view = without_final_norm(encoder)
    assert view.layers is encoder.layers and view.embed_tokens is encoder.embed_tokens
    assert type(view.norm) is nn.Identity and type(encoder.norm).__name__ == "LlamaRMSNorm"
    ids = torch.randint(0, 400, (1, 6))
    with torch.no_grad():
        states = view(input_ids=ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(encoder.norm(states), encoder(input_ids=ids, use_cache=False).last_hidden_state)


def test_on_a_cpu_the_layers_keep_their_norms(make_base, monkeypatch, merges):
    monkeypatch.delenv(choice.SETTING, raising=False)
    with torch.no_grad():
        make(make_base)(torch.randint(0, 400, (1, 8)), [8], [4])
    assert merges == []

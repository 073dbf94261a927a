"""Soft tokens against a computation written out in plain torch, which shares no code with the product."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import ConfigError, RateError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling.compressor import Compressor, cut_windows
from tests.conftest import FAMILIES


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary position embedding of (heads, length, head_dim), one frequency at a time."""
    length, half = x.shape[1], x.shape[2] // 2
    out = x.clone()
    for i in range(half):
        angle = torch.arange(length) * theta ** (-i / half)
        a, b = x[:, :, i], x[:, :, i + half]
        out[:, :, i] = a * angle.cos() - b * angle.sin()
        out[:, :, i + half] = b * angle.cos() + a * angle.sin()
    return out


def plain_layer(x: Tensor, w: dict[str, Tensor], config: object) -> Tensor:
    heads, groups, dim, eps = (
        config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rms_norm_eps
    )  # fmt: skip
    normed = rms_norm(x, w["input_layernorm.weight"], eps)
    q, k, v = (normed @ w[f"self_attn.{n}_proj.weight"].T for n in "qkv")
    q, k, v = (t.view(len(x), -1, dim).transpose(0, 1) for t in (q, k, v))
    if "self_attn.q_norm.weight" in w:
        q, k = rms_norm(q, w["self_attn.q_norm.weight"], eps), rms_norm(k, w["self_attn.k_norm.weight"], eps)
    theta = config.rope_parameters["rope_theta"]
    q, k = rotate(q, theta), rotate(k, theta)
    mixed = []
    for head in range(heads):
        shared = head // (heads // groups)
        scores = q[head] @ k[shared].T / dim**0.5
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
        mixed.append(scores.softmax(-1) @ v[shared])
    x = x + torch.cat(mixed, -1) @ w["self_attn.o_proj.weight"].T
    normed = rms_norm(x, w["post_attention_layernorm.weight"], eps)
    inner = F.silu(normed @ w["mlp.gate_proj.weight"].T) * (normed @ w["mlp.up_proj.weight"].T)
    return x + inner @ w["mlp.down_proj.weight"].T


def plain_stack(x: Tensor, base: object, count: int) -> Tensor:
    state = base.model.state_dict()
    for layer in range(count):
        prefix = f"layers.{layer}."
        x = plain_layer(x, {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}, base.config)
    return rms_norm(x, state["norm.weight"], base.config.rms_norm_eps)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("rate", [1, 3, 4, 8])
def test_soft_tokens_equal_a_plain_computation(make_base, family, rate):
    base = make_base(family, layers=4)
    compressor = Compressor.from_base(base, GMSAConfig(encoder_layers=3, lsa_layers=2)).eval()
    ids = torch.randint(0, 400, (1, 21))  # 21 leaves a ragged last group at rates 4 and 8
    with torch.no_grad():
        hidden = plain_stack(base.model.embed_tokens(ids[0]), base, 3)
        merged = torch.stack([group.mean(0) for group in hidden.split(rate)])
        expected = plain_stack(merged, base, 2)
        got = compressor(ids, [21], [rate])
    assert got.shape == (-(-21 // rate), 32)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ragged_batch_equals_single_rows(make_base, family):
    compressor = Compressor.from_base(make_base(family), GMSAConfig(encoder_layers=2, lsa_layers=1)).eval()
    ids = torch.randint(0, 400, (4, 19))
    lengths, rates = [19, 7, 1, 12], [4, 2, 8, 5]
    with torch.no_grad():
        together = compressor(ids, lengths, rates)
        single = [compressor(ids[i : i + 1, :n], [n], [r]) for i, (n, r) in enumerate(zip(lengths, rates, strict=True))]
    torch.testing.assert_close(together, torch.cat(single), atol=1e-5, rtol=0)


def test_padding_never_enters(make_base):
    compressor = Compressor.from_base(make_base(), GMSAConfig(encoder_layers=2, lsa_layers=1)).eval()
    ids = torch.randint(0, 400, (2, 16))
    other = ids.clone()
    other[0, 6:] = (other[0, 6:] + 1) % 400
    with torch.no_grad():
        torch.testing.assert_close(compressor(ids, [6, 16], [4, 4]), compressor(other, [6, 16], [4, 4]), atol=0, rtol=0)


def test_no_logits_are_computed_and_embeddings_are_shared(make_base):
    base = make_base()
    compressor = Compressor.from_base(base, GMSAConfig(encoder_layers=2, lsa_layers=1))
    assert not any("lm_head" in name for name, _ in compressor.named_modules())
    assert compressor.encoder.get_input_embeddings() is base.get_input_embeddings()
    assert not any("embed" in name for name, _ in compressor.alignment.named_parameters())


def test_layers_are_copies(make_base):
    base = make_base()
    compressor = Compressor.from_base(base, GMSAConfig(encoder_layers=2, lsa_layers=1))
    before = base.model.layers[0].mlp.up_proj.weight.clone()
    with torch.no_grad():
        compressor.encoder.layers[0].mlp.up_proj.weight.zero_()
        compressor.alignment.block.layers[0].mlp.up_proj.weight.zero_()
    assert torch.equal(base.model.layers[0].mlp.up_proj.weight, before)


def test_norms_can_be_left_out(make_base):
    base, ids = make_base(), torch.randint(0, 400, (1, 8))
    outputs = []
    for encoder_norm in (True, False):
        for lsa_norm in (True, False):
            config = GMSAConfig(encoder_layers=2, lsa_layers=1, encoder_norm=encoder_norm, lsa_norm=lsa_norm)
            with torch.no_grad():
                outputs.append(Compressor.from_base(base, config).eval()(ids, [8], [4]))
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


@pytest.mark.parametrize("layers", [0, 5])
def test_layers_beyond_the_base_are_an_error(make_base, tokenizer, layers):
    with pytest.raises(ConfigError, match="expected 1 to 3"):
        GMSA.from_base(make_base(), tokenizer, encoder_layers=layers)


@pytest.mark.parametrize(
    ("num_tokens", "rate", "window", "borders"),
    [
        (0, 4, 16, [0, 0]),
        (10, 4, 16, [0, 10]),
        (16, 4, 16, [0, 16]),
        (17, 4, 16, [0, 16, 17]),
        (40, 5, 16, [0, 15, 30, 40]),
        (10, 32, 16, [0, 10]),
    ],
)
def test_windows_are_cut_at_multiples_of_the_rate(num_tokens, rate, window, borders):
    assert cut_windows(num_tokens, rate, window) == borders
    groups = sum(-(-(b - a) // rate) for a, b in pairwise(borders))
    assert groups == -(-num_tokens // rate)


def test_a_bad_rate_is_an_error():
    for num_tokens, rate in ((10, 0), (17, 32)):
        with pytest.raises(RateError):
            cut_windows(num_tokens, rate, 16)

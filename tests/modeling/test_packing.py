import inspect

import pytest
import torch
from torch.nn.attention import varlen

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import ConfigError, ShapeError
from gmsa_rag.evaluation.variants import make_compressor
from gmsa_rag.modeling import packing
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.modeling.packing import FAMILIES, PACKED, packed_arguments, packed_attention, use_packed_attention

LENGTHS, RATES = [19, 7, 1, 12], [4, 2, 8, 5]
CONFIG = GMSAConfig(encoder_layers=2, lsa_layers=1)


def make_ids():
    torch.manual_seed(3)
    rows = [torch.randint(0, 400, (length,)) for length in LENGTHS]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.cat(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_padded(make_base, family):
    compressor = Compressor.from_base(make_base(family), CONFIG).eval()
    padded, packed = make_ids()
    with torch.no_grad():
        expected = compressor(padded, LENGTHS, RATES)
        got = compressor.forward_packed(packed, LENGTHS, RATES)
        again = compressor(padded, LENGTHS, RATES)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    # Once a model was run packed, padded batches still give what they gave.
    assert compressor.encoder.config._attn_implementation == PACKED and torch.equal(again, expected)


@pytest.mark.parametrize("window", [1, 5, 12])
def test_sliding_windows_shorter_than_a_passage(make_base, window):
    plain, sliding = (
        Compressor.from_base(make_base("mistral", sliding_window=size), CONFIG).eval() for size in (None, window)
    )
    padded, packed = make_ids()
    with torch.no_grad():
        expected = sliding(padded, LENGTHS, RATES)
        got = sliding.forward_packed(packed, LENGTHS, RATES)
        again = sliding(padded, LENGTHS, RATES)
        assert not torch.allclose(expected, plain(padded, LENGTHS, RATES), atol=1e-3)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(again, expected, atol=0, rtol=0)


def test_packed_has_the_gradients_of_padded(make_base):
    padded, packed = make_ids()
    grads = []
    for name, ids in (("forward", padded), ("forward_packed", packed)):
        compressor = Compressor.from_base(make_base(), CONFIG).train()
        getattr(compressor, name)(ids, LENGTHS, RATES).square().sum().backward()
        grads.append([parameter.grad for parameter in compressor.parameters()])
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_a_mask_of_the_callers_still_counts_after_a_packed_run(make_base):
    encoder = Compressor.from_base(make_base(), CONFIG).eval().encoder
    ids = torch.randint(0, 400, (2, 9))
    mask = torch.tensor([[0] * 4 + [1] * 5, [1] * 9])
    with torch.no_grad():
        expected = encoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        use_packed_attention(encoder)
        got = encoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert torch.equal(got, expected)


def test_nothing_to_pack(make_base):
    compressor = Compressor.from_base(make_base(), CONFIG)
    assert compressor.forward_packed(torch.zeros(0, dtype=torch.long), [], []).shape == (0, 32)


@pytest.mark.parametrize(("family", "settings"), [("gemma2", {}), ("llama", {"attn_implementation": "eager"})])
def test_what_cannot_be_packed_says_so(make_base, family, settings):
    base = make_base(family)
    if settings:
        base.set_attn_implementation(settings["attn_implementation"])
    compressor = Compressor.from_base(base, CONFIG).eval()
    assert not compressor.can_pack
    with pytest.raises(ConfigError, match="gemma2" if family == "gemma2" else "eager"):
        compressor.forward_packed(torch.zeros(3, dtype=torch.long), [3], [2])


def test_without_an_lsa_there_is_nothing_to_pack(make_base):
    compressor = make_compressor("without_lsa", make_base(), CONFIG)
    with pytest.raises(ConfigError, match="no layer semantic alignment"):
        compressor.forward_packed(torch.zeros(3, dtype=torch.long), [3], [2])


def test_dropout_of_attention_cannot_be_packed(make_base):
    compressor = Compressor.from_base(make_base(attention_dropout=0.5), CONFIG)
    ids = torch.zeros(3, dtype=torch.long)
    assert compressor.eval().forward_packed(ids, [3], [2]).shape == (2, 32)
    with pytest.raises(ConfigError, match="dropout"):
        compressor.train().forward_packed(ids, [3], [2])


@pytest.mark.parametrize(("shape", "lengths"), [((5,), [3, 3]), ((1, 5), [5]), ((5,), [5, 0])])
def test_lengths_that_do_not_fit_are_an_error(make_base, shape, lengths):
    compressor = Compressor.from_base(make_base(), CONFIG)
    with pytest.raises(ShapeError):
        compressor.forward_packed(torch.zeros(shape, dtype=torch.long), lengths, [2] * len(lengths))


def test_on_a_cpu_padded_batches_are_the_faster_way(make_base):
    assert not Compressor.from_base(make_base(), CONFIG).can_pack


def test_packing_keeps_no_square_of_the_tokens():
    arguments = packed_arguments([4, 1, 3], torch.device("cpu"))
    assert arguments["position_ids"].tolist() == [[0, 1, 2, 3, 0, 0, 1, 2]]
    assert arguments["cu_seq_lens_q"].tolist() == [0, 4, 5, 8] and arguments["max_length_q"] == 4
    assert sum(value.numel() for value in arguments.values() if isinstance(value, torch.Tensor)) == 8 + 4 + 4


@pytest.mark.parametrize("takes_shared_heads", [True, False])
@pytest.mark.parametrize("window", [None, 3])
def test_what_the_kernel_is_called_with(monkeypatch, takes_shared_heads, window):
    calls = []

    def kernel(query, key, value, *borders, **settings):
        calls.append((key.shape, borders, settings))
        return query

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(packing, "_takes_shared_heads", lambda kernel: takes_shared_heads)
    borders = torch.tensor([0, 4, 8], dtype=torch.int32)
    rows = [torch.randn(8, heads, 8) for heads in (4, 2, 2)]
    assert packing._by_kernel(rows, borders, 4, 0.25, window) is rows[0]
    shared = {"enable_gqa": True} if takes_shared_heads else {}
    seen = (-1, 0) if window is None else (2, 0)
    assert calls == [
        (
            (8, 2 if takes_shared_heads else 4, 8),
            (borders, borders, 4, 4),
            {"scale": 0.25, "window_size": seen, **shared},
        )
    ]


def test_the_installed_kernel_has_the_arguments_that_are_passed():
    known = inspect.signature(varlen.varlen_attn).parameters
    assert {"scale", "window_size"} <= set(known)
    assert list(known)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert packing._takes_shared_heads(varlen.varlen_attn) == ("enable_gqa" in known)


def test_a_passage_does_not_see_the_one_before(make_base):
    module = make_base().model.layers[0].self_attn
    query, key, value = (torch.randn(1, heads, 9, 8) for heads in (4, 2, 2))
    borders = torch.tensor([0, 4, 9], dtype=torch.int32)
    got, weights = packed_attention(module, query, key, value, None, cu_seq_lens_q=borders, max_length_q=5)
    alone, _ = packed_attention(module, *(t[:, :, 4:] for t in (query, key, value)), None)
    assert weights is None and got.shape == (1, 9, 4, 8)
    torch.testing.assert_close(got[:, 4:], alone, atol=1e-6, rtol=0)

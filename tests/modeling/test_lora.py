import sys

import pytest
import torch
from torch import nn

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import CheckpointError, ConfigError, DependencyError
from gmsa_rag.modeling.alignment import first_layers
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.modeling.lora import (
    LoraSettings,
    add_lora,
    apply_lora,
    carries_lora,
    lora_settings,
    lora_weights,
    merge_lora,
)
from tests.conftest import FAMILIES

SETTINGS = LoraSettings(rank=4, alpha=6.0, dropout=0.0)
IDS = torch.arange(5, 26)[None]
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def trained(parameters):
    """LoRA as training leaves it: no half of it zero."""
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return parameters


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_gives_the_plain_model_back_with_the_same_outputs(make_base, family):
    model = make_base(family)
    names, before, kind = list(model.state_dict()), logits(model), type(model)
    parameters = add_lora(model, SETTINGS)
    assert type(model) is kind
    torch.testing.assert_close(logits(model), before)  # lora_B starts at zero
    trained(parameters)
    changed = logits(model)
    assert (changed - before).abs().max() > 1e-2
    merge_lora(model)
    assert list(model.state_dict()) == names and not carries_lora(model) and not hasattr(model.model, "peft_config")
    torch.testing.assert_close(logits(model), changed, atol=1e-5, rtol=1e-5)


def test_every_linear_layer_within_the_layers_gets_lora_and_nothing_else(make_base):
    model = make_base(layers=2)
    parameters = add_lora(model, SETTINGS)
    assert len(parameters) == 2 * 2 * len(LINEARS)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(learning) == len(parameters) and all(".lora_" in name for name in learning)
    assert {name.split(".")[-4] for name in learning} == set(LINEARS)
    assert type(model.lm_head) is nn.Linear and type(model.model.embed_tokens) is nn.Embedding
    weights = lora_weights(model)
    assert weights["layers.1.self_attn.q_proj.lora_A"].shape == (4, 32)
    assert weights["layers.1.mlp.gate_proj.lora_B"].shape == (48, 4)
    assert lora_settings(model) == SETTINGS


def test_an_encoder_names_its_lora_as_the_whole_model_does(make_base):
    base = make_base(layers=3)
    encoder = first_layers(base, 2, norm=True, embeddings=True)
    add_lora(encoder, SETTINGS)
    whole = make_base(layers=2)
    add_lora(whole, SETTINGS)
    assert list(lora_weights(encoder)) == list(lora_weights(whole))
    assert not carries_lora(base)


def test_an_update_is_alpha_over_rank_times_the_product(make_base):
    model = make_base(layers=1)
    weights = {name: torch.zeros_like(tensor) for name, tensor in updates(layers=1, make_base=make_base).items()}
    weights["layers.0.self_attn.o_proj.lora_A"][1, 2] = 3.0
    weights["layers.0.self_attn.o_proj.lora_B"][5, 1] = 2.0
    before = model.model.layers[0].self_attn.o_proj.weight.detach().clone()
    apply_lora(model, weights, SETTINGS.scale)
    difference = model.model.layers[0].self_attn.o_proj.weight.detach() - before
    expected = torch.zeros(32, 32)
    expected[5, 2] = 9.0  # 6 / 4 * 2 * 3
    torch.testing.assert_close(difference, expected)


def updates(make_base, layers):
    model = make_base(layers=layers)
    trained(add_lora(model, SETTINGS))
    return lora_weights(model)


def test_weights_applied_to_another_plain_model_equal_a_merge(make_base):
    weights = updates(make_base, 2)
    merged, plain = make_base(layers=2), make_base(layers=2)
    trained(add_lora(merged, SETTINGS))
    merge_lora(merged)
    apply_lora(plain, weights, SETTINGS.scale)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, merged.state_dict()[name])


def test_lora_is_float32_on_bfloat16_weights_and_rounded_once(make_base):
    model = make_base(layers=1).bfloat16()
    weight = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    parameters = trained(add_lora(model, SETTINGS))
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    pair = {name: tensor.clone() for name, tensor in lora_weights(model).items() if "up_proj" in name}
    assert logits(model).dtype == torch.bfloat16
    merge_lora(model)
    down, up = pair["layers.0.mlp.up_proj.lora_A"], pair["layers.0.mlp.up_proj.lora_B"]
    expected = (weight.double() + 1.5 * up.double() @ down.double()).bfloat16()
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layers.1.mlp.up_proj.lora_B"), "missing layers.1.mlp.up_proj.lora_B"),
        (lambda w: w.update({"layers.9.mlp.up_proj.lora_A": torch.zeros(4, 32)}), "unexpected layers.9.mlp"),
        (lambda w: w.update({"lm_head.lora_A": torch.zeros(4, 32)}), "unexpected lm_head.lora_A"),
        (lambda w: w.update({"layers.0.mlp.up_proj.lora_A": torch.zeros(4, 31)}), r"up_proj.lora_A of shape \(4, 31\)"),
        (lambda w: w.update({"layers.0.mlp.up_proj.lora_B": torch.zeros(48, 3)}), r"\(48, 3\) in the place of"),
        (lambda w: w.update({"layers.0.mlp.up_proj.lora_A": torch.zeros(())}), "up_proj.lora_A of shape"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_merged(make_base, change, message):
    weights, model = updates(make_base, 2), make_base(layers=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        apply_lora(model, weights, 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "settings", [{"rank": 0}, {"rank": 2.5}, {"rank": True}, {"alpha": 0}, {"alpha": float("nan")}, {"dropout": 1.0}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match="lora"):
        LoraSettings(**settings)


def test_the_defaults_are_the_paper_s():
    assert LoraSettings() == LoraSettings(rank=128, alpha=32.0, dropout=0.05) and LoraSettings().scale == 0.25


def test_lora_is_neither_added_twice_nor_merged_twice(make_base):
    model = make_base(layers=1)
    add_lora(model, SETTINGS)
    with pytest.raises(ConfigError, match="got one that carries LoRA"):
        add_lora(model, SETTINGS)
    merge_lora(model)
    with pytest.raises(ConfigError, match="one without"):
        merge_lora(model)


def test_quantised_weights_take_no_lora_and_give_no_compressor(make_base):
    flagged = make_base()
    flagged.is_quantized = True
    declared = make_base()
    declared.config.quantization_config = {"quant_method": "bitsandbytes"}
    for model in (flagged, declared):
        with pytest.raises(ConfigError, match="a compressor is never quantised"):
            add_lora(model, SETTINGS)
        with pytest.raises(ConfigError, match="a compressor is never quantised"):
            apply_lora(model, {}, 1.0)
        with pytest.raises(ConfigError, match="a compressor is never quantised"):
            Compressor.from_base(model, GMSAConfig(encoder_layers=2))


def test_copies_of_bfloat16_layers_keep_exact_rotary_frequencies(make_base):
    exact = make_base().model.rotary_emb.inv_freq
    copied = first_layers(make_base().bfloat16(), 2, norm=True, embeddings=True)
    assert copied.dtype == torch.bfloat16
    assert torch.equal(copied.rotary_emb.inv_freq, exact)


def test_without_peft_the_remedy_is_named(make_base, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DependencyError, match=r'pip install "gmsa-rag\[train\]"'):
        add_lora(make_base(), SETTINGS)

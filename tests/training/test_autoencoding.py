import pytest
import torch
from transformers import AutoModelForCausalLM

from gmsa_rag.errors import CheckpointError, ConfigError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling.checkpoint import read_config, verify_fingerprint
from gmsa_rag.modeling.lora import LoraSettings, lora_weights, plain_state
from gmsa_rag.training import autoencoding
from gmsa_rag.training.autoencoding import autoencode
from gmsa_rag.training.logs import read_log
from tests.training.gguf import write_gguf
from tests.training.stages import AUTOENCODE, changed

LORA = LoraSettings(rank=4, alpha=8.0, dropout=0.1)
FROZEN = changed(AUTOENCODE, train_decoder=False)
WITH_LORA = changed(FROZEN, lora=LORA)
PASSAGE = "The river Oder joined the Elbe near Fort Seine in 1600."


def check_decoder_is_the_base(gmsa, base):
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=gmsa.decoder.dtype).state_dict()
    ours = gmsa.decoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_decoder_can_be_frozen(runs, data, tmp_path):
    made = GMSA.from_pretrained(autoencode(FROZEN, runs[1], data, tmp_path / "ae"))
    check_decoder_is_the_base(made, runs[1])
    base = AutoModelForCausalLM.from_pretrained(runs[1]).model
    for ours, theirs in zip(made.compressor.encoder.layers.parameters(), base.layers.parameters(), strict=False):
        assert not torch.equal(ours, theirs)
    for ours, theirs in zip(
        made.compressor.alignment.block.layers.parameters(), base.layers.parameters(), strict=False
    ):
        assert not torch.equal(ours, theirs)


def test_lora_trains_the_encoder_beside_its_weights(runs, data, tmp_path, monkeypatch):
    before_merging = {}
    merge = autoencoding.merge_lora

    def watched(encoder):
        weights = plain_state(encoder) | {f"lora {name}": tensor for name, tensor in lora_weights(encoder).items()}
        before_merging.update({name: tensor.clone() for name, tensor in weights.items()})
        merge(encoder)

    monkeypatch.setattr(autoencoding, "merge_lora", watched)
    made = GMSA.from_pretrained(autoencode(WITH_LORA, runs[1], data, tmp_path / "ae"))
    check_decoder_is_the_base(made, runs[1])
    base = AutoModelForCausalLM.from_pretrained(runs[1]).model.state_dict()
    encoder, linears = made.compressor.encoder.state_dict(), 0
    for name, weight in encoder.items():
        down, up = (before_merging.get(f"lora {name.removesuffix('weight')}lora_{half}") for half in "AB")
        if down is None:
            assert torch.equal(weight, base[name]), name
            continue
        linears += 1
        assert up.abs().sum() > 0
        torch.testing.assert_close(weight, base[name] + 2.0 * up @ down)  # alpha / rank
    assert linears == 7
    for name, weight in base.items():
        assert name not in encoder or torch.equal(weight, before_merging[name]), name


def test_saved_adapters_give_what_a_checkpoint_in_full_gives(runs, data, tmp_path):
    full = GMSA.from_pretrained(autoencode(WITH_LORA, runs[1], data, tmp_path / "full"))
    out = autoencode(changed(WITH_LORA, save="adapters"), runs[1], data, tmp_path / "adapters")
    made = GMSA.from_pretrained(out)
    assert made.config.base == str(runs[1].resolve())
    assert not (out / "decoder").exists()
    assert made.fingerprint == verify_fingerprint(out)
    check_decoder_is_the_base(made, runs[1])
    soft_tokens = made.compress(PASSAGE, rate=4).soft_tokens
    torch.testing.assert_close(soft_tokens, full.compress(PASSAGE, rate=4).soft_tokens, atol=1e-5, rtol=0)
    untrained = GMSA.from_base(made.decoder, made.tokenizer, encoder_layers=1, lsa_layers=1, window=48)
    assert (soft_tokens - untrained.compress(PASSAGE, rate=4).soft_tokens).abs().max() > 1e-2


def test_adapters_stand_on_a_gguf_file_as_well(runs, data, tmp_path, monkeypatch):
    base = tmp_path / "tiny.gguf"
    write_gguf(runs[1], base)
    monkeypatch.chdir(tmp_path)
    out = autoencode(changed(WITH_LORA, save="adapters"), base.name, data, tmp_path / "adapters")
    monkeypatch.chdir(out)
    made = GMSA.from_pretrained(out)
    assert made.config.base == str(base.resolve())
    assert made.fingerprint == verify_fingerprint(out)
    assert made.compress(PASSAGE, rate=4).soft_tokens.isfinite().all()
    base.unlink()
    with pytest.raises(CheckpointError, match=r"base .*tiny.gguf: expected the causal LM that these adapters"):
        GMSA.from_pretrained(out)


def test_frozen_weights_can_be_kept_in_bfloat16(runs, data, tmp_path):
    recipe = changed(WITH_LORA, frozen_dtype="bfloat16", bf16=True)
    out = autoencode(recipe, runs[1], data, tmp_path / "ae")
    made = GMSA.from_pretrained(out, dtype="bfloat16")
    check_decoder_is_the_base(made, runs[1])
    assert read_config(out).compressor_dtype == "bfloat16"
    assert made.fingerprint == verify_fingerprint(out)


def test_gradient_checkpointing_gives_the_same_losses(runs, data, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoding, "save_checkpoint", lambda *_: None)
    monkeypatch.setattr("gmsa_rag.training.loop.LOG_EVERY", 1)
    losses = []
    for name, on in (("plain", False), ("checkpointed", True)):
        autoencode(changed(FROZEN, gradient_checkpointing=on), runs[1], data, tmp_path / name)
        losses.append([row["loss"] for row in read_log(tmp_path / name / "log.jsonl")])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert max(losses[0]) - min(losses[0]) > 0.05


def test_autoencoding_goes_on_from_a_checkpoint(runs, data, tmp_path, monkeypatch):
    monkeypatch.setattr("gmsa_rag.training.loop.LOG_EVERY", 1)
    _, base, compressed, _ = runs
    longer = changed(AUTOENCODE, phases=AUTOENCODE.phases[1:], steps=1, learning_rate=1e-6)
    out = autoencode(changed(longer, phases=longer.phases), compressed, data, tmp_path / "on")
    anew = autoencode(longer, base, data, tmp_path / "anew")
    made, before = GMSA.from_pretrained(out), GMSA.from_pretrained(compressed)
    assert made.fingerprint == verify_fingerprint(out) != before.fingerprint
    near = made.compress(PASSAGE, rate=4).soft_tokens - before.compress(PASSAGE, rate=4).soft_tokens
    far = (
        GMSA.from_pretrained(anew).compress(PASSAGE, rate=4).soft_tokens - before.compress(PASSAGE, rate=4).soft_tokens
    )
    assert near.abs().max() < 1e-3 < 1e-2 < far.abs().max()
    on, first = (read_log(tmp_path / name / "log.jsonl")[0]["loss"] for name in ("on", "anew"))
    assert on < first - 0.01


def test_it_goes_on_from_adapters_in_full(runs, data, tmp_path):
    start = autoencode(changed(WITH_LORA, save="adapters"), runs[1], data, tmp_path / "adapters")
    out = autoencode(changed(AUTOENCODE, steps=1), start, data, tmp_path / "on")
    assert read_config(out).base == "" and (out / "decoder").exists()
    assert GMSA.from_pretrained(out).fingerprint == verify_fingerprint(out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 47}, "'window': 48"),
        ({"encoder_layers": 2}, "'encoder_layers': 1"),
        ({"lora": LORA, "save": "adapters", "train_decoder": False}, "save: full"),
    ],
)
def test_another_shape_than_the_checkpoints_is_a_typed_error(runs, data, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        autoencode(changed(AUTOENCODE, **settings), runs[2], data, tmp_path / "ae")
    assert not (tmp_path / "ae").exists()  # so that the recipe can be mended

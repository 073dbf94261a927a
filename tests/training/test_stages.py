import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gmsa_rag.errors import CheckpointError, ConfigError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling.checkpoint import verify_fingerprint
from gmsa_rag.training import loop
from gmsa_rag.training.autoencoding import autoencode
from gmsa_rag.training.keft import keft
from gmsa_rag.training.pretraining import pretrain
from gmsa_rag.training.recipe import AutoencodeRecipe, KeftRecipe, Optimisation, Phase, PretrainRecipe
from gmsa_rag.training.recipe_file import load_recipe

STEPS = Optimisation(steps=8, batch_tokens=400, warmup=2, save_every=3, bf16=False, learning_rate=3e-3)
ARCHITECTURE = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
PRETRAIN = PretrainRecipe(STEPS, ("rivers",), ARCHITECTURE, vocab_size=400, window=32)
AUTOENCODE = AutoencodeRecipe(
    STEPS, ("rivers",), (Phase((1,), (16, 16), 0.0, 3), Phase((1, 4), (8, 60))), encoder_layers=1, window=48,
    train_decoder=True, tasks={"restore": 0.5, "cloze": 0.5},
    templates={
        "restore_template": "{memory}<|restore|>",
        "answer_template": "<|user|>{passages}Question: {question}<|assistant|>",
    },
)  # fmt: skip
KEFT_PHASES = (Phase((1,), (16, 24), 0.0, 3), Phase((1, 4), (16, 48)))
KEFT = KeftRecipe(STEPS, ("rivers",), ("rivers.train",), KEFT_PHASES, {"restore": 0.2, "question": 0.8})


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """All three stages, eight steps each."""
    out = tmp_path_factory.mktemp("runs")
    base = pretrain(PRETRAIN, data, out / "pretrain")
    compressed = autoencode(AUTOENCODE, base, data, out / "autoencode")
    return out, base, compressed, keft(KEFT, compressed, data, out / "keft")


def test_the_stages_lead_from_text_to_a_checkpoint(runs):
    out, base, _, final = runs
    assert len(AutoTokenizer.from_pretrained(base)) == 400
    assert AutoModelForCausalLM.from_pretrained(base).config.num_hidden_layers == 2
    gmsa = GMSA.from_pretrained(final)
    assert gmsa.config.window == 48 and gmsa.config.rates == [1, 4]
    assert isinstance(
        gmsa.answer("When did they join?", gmsa.compress(["The Oder joined the Elbe in 1600."])).text, str
    )
    assert json.loads((out / "keft" / "recipe.json").read_text())["optimisation"]["steps"] == 8


def test_keft_leaves_compressor_and_embeddings_alone(runs):
    _, _, compressed, final = runs
    before, after = GMSA.from_pretrained(compressed), GMSA.from_pretrained(final)
    assert before.fingerprint == after.fingerprint == verify_fingerprint(final)
    assert torch.equal(before.decoder.get_input_embeddings().weight, after.decoder.get_input_embeddings().weight)
    assert not torch.equal(
        before.decoder.model.layers[0].mlp.up_proj.weight, after.decoder.model.layers[0].mlp.up_proj.weight
    )
    memory = before.compress("The Oder joined the Elbe in 1600.", rate=4)
    after.restore(memory)  # another decoder, the same compressor: no FingerprintError


def test_autoencoding_can_freeze_the_decoder(runs, data, tmp_path):
    _, base, _, _ = runs
    out = autoencode(dataclasses.replace(AUTOENCODE, train_decoder=False), base, data, tmp_path / "ae")
    made, plain = GMSA.from_pretrained(out), AutoModelForCausalLM.from_pretrained(base)
    for name, weight in plain.state_dict().items():
        trained = made.decoder.state_dict()[name]
        assert torch.equal(weight, trained), name
    assert not torch.equal(
        made.compressor.encoder.layers[0].mlp.up_proj.weight, plain.model.layers[0].mlp.up_proj.weight
    )


def test_losses_fall(data, tmp_path):
    recipe = dataclasses.replace(PRETRAIN, optimisation=dataclasses.replace(STEPS, steps=60))
    pretrain(recipe, data, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5


@pytest.mark.parametrize("stop_at", [4, 5])
def test_a_killed_run_resumes_exactly(runs, data, tmp_path, monkeypatch, stop_at):
    _, base, compressed, _ = runs

    class Killed(Exception):
        pass

    step = loop.Run._step

    def kill(self, batch):
        if self.position.step == stop_at:
            raise Killed
        step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_step", kill)
        with pytest.raises(Killed):
            autoencode(AUTOENCODE, base, data, tmp_path / "ae")
    resumed = autoencode(AUTOENCODE, base, data, tmp_path / "ae")
    assert GMSA.from_pretrained(resumed).fingerprint == GMSA.from_pretrained(compressed).fingerprint
    for name in ("compressor.safetensors", "decoder/model.safetensors"):
        expected, got = load_file(compressed / name), load_file(resumed / name)
        assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_a_finished_run_is_not_trained_again(runs, data, monkeypatch):
    out, base, compressed, _ = runs
    before = GMSA.from_pretrained(compressed).fingerprint
    monkeypatch.setattr(loop.Run, "_step", lambda *_: pytest.fail("trained again"))
    assert GMSA.from_pretrained(autoencode(AUTOENCODE, base, data, out / "autoencode")).fingerprint == before


def test_a_run_of_another_recipe_is_not_resumed(runs, data):
    out, base, _, _ = runs
    other = dataclasses.replace(AUTOENCODE, train_decoder=False)
    with pytest.raises(CheckpointError, match="another recipe"):
        autoencode(other, base, data, out / "autoencode")


def test_time_ends_a_run(data, tmp_path):
    limited = dataclasses.replace(PRETRAIN, optimisation=dataclasses.replace(STEPS, steps=10**6, max_minutes=0.002))
    pretrain(limited, data, tmp_path / "run")
    assert 1 <= json.loads((tmp_path / "run" / "resume" / "state.json").read_text())["step"] < 1000


@pytest.mark.parametrize("kind", [PretrainRecipe, AutoencodeRecipe, KeftRecipe])
def test_the_bundled_recipe_is_whole(tmp_path, kind):
    assert load_recipe(Path("gmsa-mini"), kind).optimisation.steps > 0


@pytest.mark.parametrize(
    "text",
    ["", "pretrain: {}", "pretrain: {optimisation: {steps: 1, speed: 2}, text: [], architecture: {}}", "a: [", "[]"],
)
def test_a_bad_recipe_is_a_typed_error(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match="recipe"):
        load_recipe(tmp_path / "r.yaml", PretrainRecipe)

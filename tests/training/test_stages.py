import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gmsa_rag.errors import CheckpointError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling.lora import LoraSettings
from gmsa_rag.training import loop
from gmsa_rag.training.autoencoding import autoencode
from gmsa_rag.training.keft import keft
from tests.training.stages import AUTOENCODE, KEFT, changed

LORA = LoraSettings(rank=4, alpha=8.0, dropout=0.3)


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


class Killed(Exception):
    """What ends a run in the middle."""


@pytest.fixture
def killed(monkeypatch):
    """Runs a stage until it is killed after so many steps."""

    def run(stage, stop_at, *arguments):
        step = loop.Run._step

        def kill(self, batch):
            if self.position.step == stop_at:
                raise Killed
            step(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(loop.Run, "_step", kill)
            with pytest.raises(Killed):
                stage(*arguments)

    return run


def check_equal(expected, got):
    assert GMSA.from_pretrained(got).fingerprint == GMSA.from_pretrained(expected).fingerprint
    for name in ("compressor.safetensors", "decoder/model.safetensors"):
        weights, found = load_file(expected / name), load_file(got / name)
        assert weights.keys() == found.keys()
        assert all(torch.equal(weights[key], found[key]) for key in weights)


@pytest.mark.parametrize("stop_at", [4, 5])
def test_a_killed_run_resumes_exactly(runs, data, tmp_path, killed, stop_at):
    _, base, compressed, _ = runs
    killed(autoencode, stop_at, AUTOENCODE, base, data, tmp_path / "ae")
    check_equal(compressed, autoencode(AUTOENCODE, base, data, tmp_path / "ae"))


def test_a_run_stepped_by_muon_resumes_exactly(runs, data, tmp_path, killed):
    recipe = changed(AUTOENCODE, optimiser="muon")
    expected = autoencode(recipe, runs[1], data, tmp_path / "whole")
    killed(autoencode, 5, recipe, runs[1], data, tmp_path / "ae")
    check_equal(expected, autoencode(recipe, runs[1], data, tmp_path / "ae"))
    assert GMSA.from_pretrained(expected).fingerprint != GMSA.from_pretrained(runs[2]).fingerprint


def test_lora_with_dropout_resumes_exactly_and_starts_from_the_seed(runs, data, tmp_path, killed):
    recipe = changed(AUTOENCODE, lora=LORA, train_decoder=False)
    expected = autoencode(recipe, runs[1], data, tmp_path / "whole")
    torch.manual_seed(99)  # what happened before in the process does not count
    killed(autoencode, 4, recipe, runs[1], data, tmp_path / "ae")
    check_equal(expected, autoencode(recipe, runs[1], data, tmp_path / "ae"))
    other = autoencode(changed(recipe, seed=1), runs[1], data, tmp_path / "seed")
    assert GMSA.from_pretrained(other).fingerprint != GMSA.from_pretrained(expected).fingerprint


def test_fine_tuning_with_lora_and_dropout_resumes_exactly(runs, data, tmp_path, killed):
    recipe = changed(KEFT, trainable="lora", lora=LORA, accumulate=2)
    expected = keft(recipe, runs[2], data, tmp_path / "whole")
    killed(keft, 7, recipe, runs[2], data, tmp_path / "keft")
    check_equal(expected, keft(recipe, runs[2], data, tmp_path / "keft"))


def test_a_finished_run_is_not_trained_again(runs, data, monkeypatch):
    out, base, compressed, _ = runs
    before = GMSA.from_pretrained(compressed).fingerprint
    monkeypatch.setattr(loop.Run, "_step", lambda *_: pytest.fail("trained again"))
    assert GMSA.from_pretrained(autoencode(AUTOENCODE, base, data, out / "autoencode")).fingerprint == before


def test_a_run_of_another_recipe_is_not_resumed(runs, data):
    out, base, _, _ = runs
    other = changed(AUTOENCODE, train_decoder=False)
    with pytest.raises(CheckpointError, match="another recipe"):
        autoencode(other, base, data, out / "autoencode")

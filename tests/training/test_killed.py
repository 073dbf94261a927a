"""A run that is killed with SIGKILL and started again ends as one that was never interrupted."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gmsa_rag.modeling.lora import LoraSettings
from gmsa_rag.training.autoencoding import autoencode
from gmsa_rag.training.logs import read_log
from tests.training.stages import AUTOENCODE, changed

# Long enough to be killed in the middle, and past the end of a phase.
RECIPE = changed(
    AUTOENCODE, steps=60, save_every=4, lora=LoraSettings(rank=4, dropout=0.2), train_decoder=False, batch_tokens=300
)
KILL_AFTER = 24


def write_recipe(path):
    values = {"autoencode": json.loads(json.dumps(dataclasses.asdict(RECIPE)))}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def command(recipe, base, data, out):
    options = {"recipe": recipe, "base": base, "data": data, "out": out, "device": "cpu", "threads": 1}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "gmsa_rag.cli", "train", "autoencode", *arguments]


def saved_step(out):
    state = out / "resume" / "state.json"
    return json.loads(state.read_text())["step"] if state.exists() else 0


def kill_in_the_middle(arguments, out):
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 240
        while saved_step(out) < KILL_AFTER:
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def outs(runs, data, tmp_path_factory):
    """Directories of a run that was killed once and of one that was not."""
    folder = tmp_path_factory.mktemp("killed")
    recipe = write_recipe(folder / "recipe.yaml")
    killed, whole = folder / "killed", folder / "whole"
    kill_in_the_middle(command(recipe, runs[1], data, killed), killed)
    assert KILL_AFTER <= saved_step(killed) < RECIPE.optimisation.steps
    subprocess.run(command(recipe, runs[1], data, killed), check=True, capture_output=True)
    autoencode(RECIPE, runs[1], data, whole)
    return killed, whole


def test_the_log_is_that_of_an_uninterrupted_run(outs):
    killed, whole = (without_times(read_log(out / "log.jsonl")) for out in outs)
    assert killed == whole
    assert [row["step"] for row in whole] == [20, 40, 60]
    assert len({row["loss"] for row in whole}) == 3


def test_the_weights_are_those_of_an_uninterrupted_run(outs):
    for name in ("compressor.safetensors", "decoder/model.safetensors"):
        killed, whole = (load_file(out / "checkpoint" / name) for out in outs)
        assert killed.keys() == whole.keys()
        assert all(torch.equal(killed[key], whole[key]) for key in whole)

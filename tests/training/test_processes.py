"""Several processes train together: one log, exact resume, and sharded weights as good as whole ones."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling.checkpoint import verify_fingerprint
from gmsa_rag.training.autoencoding import autoencode
from gmsa_rag.training.logs import read_log
from tests.training.stages import AUTOENCODE, PRETRAIN, changed

pytestmark = pytest.mark.slow

RECIPE = changed(AUTOENCODE, steps=40, save_every=15, accumulate=2)
# `--cpu` starts one process whatever the number; `--multi_gpu` starts them, and `--device cpu` keeps them off GPUs.
LAUNCH = [
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "gmsa_rag.cli",
]  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1", "--nproc_per_node", "2"]


def run(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=540)
    return done.returncode, done.stdout + done.stderr


def check_run(*arguments):
    code, told = run(*arguments)
    assert code == 0, told
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def train(folder, runs, data):
    """Runs the stage in two processes, with other settings where some are given."""

    def launch(name, launcher=(*LAUNCH, "train", "autoencode"), **settings):
        recipe = folder / f"{name}.yaml"
        values = json.loads(json.dumps(dataclasses.asdict(changed(RECIPE, **settings))))
        recipe.write_text(yaml.safe_dump({"autoencode": values}, sort_keys=False))
        arguments = [recipe, runs[1], data, folder / name]
        if "gmsa_rag.cli" in launcher:
            names = ("--recipe", "--base", "--data", "--out")
            pairs = zip(names, arguments, strict=True)
            arguments = [text for pair in pairs for text in pair] + ["--device", "cpu", "--threads", "1"]
        return [*launcher, *arguments]

    return launch


@pytest.fixture(scope="module")
def together(train, folder):
    """Directory of a run of two processes."""
    check_run(*train("together"))
    return folder / "together"


def weights(out):
    names = ("compressor.safetensors", "decoder/model.safetensors")
    return {f"{n} {k}": tensor for n in names for k, tensor in load_file(out / "checkpoint" / n).items()}


def test_two_processes_write_one_log(together):
    rows = read_log(together / "log.jsonl")
    assert [row["step"] for row in rows] == [20, 40]
    state = json.loads((together / "resume" / "state.json").read_text())
    assert len(state["places"]) == 2
    assert (together / "loss.png").exists() and len(list((together / "tensorboard").iterdir())) == 1
    assert GMSA.from_pretrained(together / "checkpoint").fingerprint == verify_fingerprint(together / "checkpoint")


def test_two_processes_see_twice_the_examples_of_one(together, train, folder, runs, data):
    autoencode(RECIPE, runs[1], data, folder / "alone")
    alone, both = (read_log(path / "log.jsonl") for path in (folder / "alone", together))
    assert both[-1]["tokens"] == pytest.approx(2 * alone[-1]["tokens"], rel=0.2)
    assert both[-1]["loss"] == pytest.approx(alone[-1]["loss"], abs=0.5)


def kill_in_the_middle(arguments, out):
    """Kill all processes of a run once it has saved its state."""
    launcher = subprocess.Popen(
        [sys.executable, *map(str, arguments)], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    give_up = time.monotonic() + 300
    while not (out / "resume" / "state.json").exists() and launcher.poll() is None and time.monotonic() < give_up:
        time.sleep(0.01)
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()


def test_two_processes_resume_exactly(together, train, folder):
    kill_in_the_middle(train("killed"), folder / "killed")
    assert not (folder / "killed" / "checkpoint").exists()
    assert json.loads((folder / "killed" / "resume" / "state.json").read_text())["step"] < RECIPE.optimisation.steps
    check_run(*train("killed"))
    expected, got = weights(together), weights(folder / "killed")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    rows = [read_log(out / "log.jsonl") for out in (together, folder / "killed")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_another_number_of_processes_is_refused(together, train):
    alone = ["-m", "gmsa_rag.cli", "train", "autoencode"]
    code, told = run(*train("together", steps=50, launcher=alone))
    assert code != 0
    assert "2 processes, as it was started with" in " ".join(told.replace("│", " ").split())


def test_sharded_weights_train_and_resume_as_whole_ones(together, train, folder):
    arguments = train("sharded", launcher=[*TORCHRUN, Path(__file__).with_name("sharded.py")])
    kill_in_the_middle(arguments, folder / "sharded")
    assert not (folder / "sharded" / "checkpoint").exists()
    check_run(*arguments)
    whole, sharded = weights(together), weights(folder / "sharded")
    assert whole.keys() == sharded.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(sharded[name], weight, atol=1e-4, rtol=0)


def test_sharded_matrices_are_not_stepped_by_muon(train, folder):
    sharded = [*TORCHRUN, Path(__file__).with_name("sharded.py")]
    code, told = run(*train("muon", launcher=sharded, optimiser="muon"))
    assert code != 0
    assert "expected whole matrices in every process, got matrices sharded by FSDP" in told
    assert not (folder / "muon" / "resume").exists()


def test_pretraining_in_two_processes_makes_one_tokenizer(folder, data):
    recipe = folder / "pretrain.yaml"
    recipe.write_text(
        yaml.safe_dump({"pretrain": json.loads(json.dumps(dataclasses.asdict(changed(PRETRAIN, steps=2))))})
    )
    out = folder / "pretrain"
    check_run(*LAUNCH, "train", "pretrain", "--recipe", recipe, "--data", data, "--out", out, "--device", "cpu")
    assert len(AutoTokenizer.from_pretrained(out / "base")) == 400
    assert AutoModelForCausalLM.from_pretrained(out / "base").config.vocab_size == 400
    assert not list(out.glob("*.part"))

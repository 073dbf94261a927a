import os
import subprocess
from pathlib import Path

import pytest

import gmsa_rag.training

SCRIPT = Path(gmsa_rag.training.__file__).parent / "launch" / "gmsa-mini.sh"


@pytest.fixture
def launch(tmp_path):
    """What the script would call; `echo` stands in for Python."""

    def run(*stages, **settings):
        own = {"BASE", "DEVICE", "STEPS", "RECIPE"}
        environment = {**{k: v for k, v in os.environ.items() if k not in own}, "PYTHON": "echo", **settings}
        return subprocess.run(
            ["bash", SCRIPT, "DATA", "OUT", *stages], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    return run


def stages_of(done):
    return [line.split()[3] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("settings", [{}, {"BASE": ""}])
def test_without_a_base_all_starts_from_scratch(launch, settings):
    done = launch(**settings)
    assert stages_of(done) == ["pretrain", "autoencode", "keft", "export"]
    assert "--base" not in done.stdout.splitlines()[0]


def test_a_base_is_pruned_first_and_trained_on(launch):
    done = launch(BASE="large.gguf", DEVICE="cuda", STEPS="3")
    assert stages_of(done) == ["prune", "pretrain", "autoencode", "keft", "export"]
    prune, pretrain, *_ = done.stdout.splitlines()
    assert prune.endswith("--out OUT/prune --base large.gguf")
    assert pretrain.endswith("--device cuda --steps 3 --out OUT/pretrain --base OUT/prune/base")


def test_a_base_that_was_pruned_is_trained_on_without_its_name(launch, tmp_path):
    (tmp_path / "OUT" / "prune" / "base").mkdir(parents=True)
    assert launch("pretrain").stdout.strip().endswith("--out OUT/pretrain --base OUT/prune/base")


def test_one_stage_alone(launch):
    assert stages_of(launch("keft")) == ["keft"]


@pytest.mark.parametrize(("stage", "said"), [("prune", "expected BASE"), ("lunch", "got lunch")])
def test_what_cannot_be_run_is_said(launch, stage, said):
    done = launch(stage)
    assert done.returncode and said in done.stderr and not done.stdout

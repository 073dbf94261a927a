"""The script for a machine with a GPU, rehearsed at its smallest on whatever there is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "gmsa_rag" / "benchmark" / "launch" / "gpu.sh"


def launch(*arguments, **settings):
    environment = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cpu", "DTYPE": "float32", **settings}
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_command_of_the_script_runs(tmp_path):
    done = launch(tmp_path, SHAPES="gmsa-mini", REHEARSE="1")
    assert done.returncode == 0, done.stderr
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")}
    assert written == {
        "kernel-group-merging.json",
        "compress-gmsa-mini.json",
        "growth-gmsa-mini.json",
        "answer-gmsa-mini.json",
        "plain/answer-gmsa-mini.json",
        "dynamic/answer-gmsa-mini.json",
        "4-layers/answer-gmsa-mini.json",
        "store-gmsa-mini.json",
    }
    assert all(json.loads((tmp_path / name).read_text())["rows"] for name in written)


def test_an_unknown_part_is_named(tmp_path):
    done = launch(tmp_path, "kernels")
    assert done.returncode == 2 and "expected kernel, compress, answer or store, got kernels" in done.stderr

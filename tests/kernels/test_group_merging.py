"""The kernels without a GPU: their results in Triton's interpreter, their compiled form for three GPUs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
INTERPRETED_CASES = 123


def run_apart(arguments, **environment):
    """Run Python in a process of its own: Triton reads TRITON_INTERPRET when the kernels are defined."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_results_in_the_interpreter():
    arguments = ["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", HERE / "interpreted.py"]
    output = run_apart(arguments, TRITON_INTERPRET="1")
    assert re.findall(r"(\d+) (\w+)", output.splitlines()[-1])[0] == (str(INTERPRETED_CASES), "passed"), output


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("compiled")
    output = run_apart([HERE / "compiled.py", directory], TRITON_CACHE_DIR=str(directory / "cache"))
    return [json.loads(line) for line in output.splitlines()]


def test_compiled_kernels_keep_to_their_registers(compiled):
    assert {case["target"] for case in compiled} == {"sm_80", "sm_90", "gfx942"}
    assert len(compiled) == 16
    for case in compiled:
        assert case["spilled"] == 0, case
        # 65536 registers a multiprocessor: four programs of 4 warps, or two of 8, stay resident.
        assert 0 < case["registers"] <= 128, case


def test_loads_are_as_wide_as_the_hardware_allows(compiled):
    for case in compiled:
        if case["target"].startswith("sm_"):
            # Every row of states in the forward tile, and the weights; states, gradients and weights backward.
            assert case["wide"] >= (6 if case["kernel"] == "forward_kernel" else 7), case
            assert case["narrow"] == 0, case


def test_importing_the_package_loads_no_triton():
    code = "import sys, gmsa_rag.kernels; sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    run_apart(["-c", code])

"""Each example runs as it is, on the bundled checkpoint or the one that GMSA_MODEL names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
PRINTED = {
    "cached_store": ("found 0 memories, computed 3", "found 3 memories, computed 0"),
    "demo": ("Indexed 48 passages", "Passage 'Danube'", "Passage 'Lise Meitner'", "Summary over 12 questions", "EM"),
    "langchain_chain": ("invoke:", "stream:", "ainvoke:", "batch:"),
    "quickstart": ("soft tokens; stored: 1", "Answer:", "Restored:"),
}


def run(example, folder):
    """What an example prints. It runs elsewhere, so that it finds its own data, and asks no hub."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(example)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example, tmp_path):
    printed = run(example, tmp_path)
    for words in PRINTED[example.stem]:
        assert words in printed
    assert list(tmp_path.iterdir()) == []
    if example.stem == "demo":
        for label in ("Question:", "Reference:", "From memories:", "From full text:", "Prompt tokens:", "First token:"):
            assert printed.count(label) >= 12

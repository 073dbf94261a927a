import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gmsa_rag.errors import DataError
from gmsa_rag.evaluation.commands import app
from gmsa_rag.evaluation.qa import QARow
from gmsa_rag.evaluation.report import read_report
from gmsa_rag.evaluation.restoration import RestorationRow
from gmsa_rag.inference.engine import GMSA

SENTENCE = "The {0} begins in the hills of {0} and ends in the sea of {0}, where boats of {0} lie."


@pytest.fixture(scope="module")
def place(gmsa: GMSA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and data, in the layout of real ones."""
    place = tmp_path_factory.mktemp("evaluation")
    gmsa.save_pretrained(place / "tiny")
    names = ["Danube", "Rhine", "Elbe", "Loire"]
    for folder in ("qa", "text"):
        (place / "data" / folder).mkdir(parents=True)
    documents = "\n<|doc|>\n".join(SENTENCE.format(name) for name in names)
    (place / "data" / "text" / "small.heldout.txt.gz").write_bytes(gzip.compress(documents.encode()))
    rows = [
        {
            "question": f"Where does the {name} end?", "answers": [f"sea of {name}"], "gold": [0],
            "contexts": [{"title": name, "text": SENTENCE.format(name)}],
        }
        for name in names
    ]  # fmt: skip
    (place / "data" / "qa" / "small.dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


def invoke(place: Path, command: str, *options: str) -> str:
    shared = ["--model", str(place / "tiny"), "--data", str(place / "data"), "--device", "cpu"]
    result = CliRunner().invoke(app, [command, *shared, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_restoration_writes_a_report(place: Path, tmp_path: Path) -> None:
    options = [
        "--file",
        "small.heldout",
        "--windows",
        "16,24",
        "--rates",
        "4",
        "--samples",
        "3",
        "--out",
        str(tmp_path),
    ]
    output = invoke(place, "restoration", *options)
    report = read_report(tmp_path / "restoration-small.heldout.json", RestorationRow)
    assert "| 16 | 4 | 3 |" in output
    assert [(row.window, row.rate) for row in report.rows] == [(16, 4), (24, 4)]
    assert report.setting.files == ("small.heldout.txt.gz",)
    assert report.setting.model == "tiny"


def test_qa_writes_a_report_and_is_deterministic(place: Path, tmp_path: Path) -> None:
    options = ["--file", "small.dev", "--rates", "4,8", "--limit", "3", "--max-new-tokens", "3", "--seed", "2"]
    reports = []
    for name in ("first", "second"):
        output = invoke(place, "qa", *options, "--out", str(tmp_path / name))
        assert "| other_memories | 8 | 3 |" in output
        reports.append(read_report(tmp_path / name / "qa-small.dev.json", QARow))
    assert reports[0].rows == reports[1].rows
    assert len(reports[0].rows) == 6
    assert reports[0].setting.num_samples == 3


def test_dtype_is_used_and_reported(place: Path, tmp_path: Path) -> None:
    options = ["--file", "small.dev", "--conditions", "closed_book", "--max-new-tokens", "2", "--dtype", "bfloat16"]
    invoke(place, "qa", *options, "--out", str(tmp_path))
    assert read_report(tmp_path / "qa-small.dev.json", QARow).setting.dtype == "bfloat16"


@pytest.mark.parametrize("rates", ["4,x", "0", ""])
def test_wrong_numbers_are_refused_before_anything_is_loaded(place: Path, tmp_path: Path, rates: str) -> None:
    options = ["--model", "none", "--data", str(place / "data"), "--out", str(tmp_path), "--rates", rates]
    result = CliRunner().invoke(app, ["qa", *options])
    assert result.exit_code == 2
    assert "--rates" in result.output


def test_missing_file_is_named(place: Path, tmp_path: Path) -> None:
    options = ["--model", "none", "--data", str(place / "data"), "--out", str(tmp_path), "--file", "absent.dev"]
    with pytest.raises(DataError, match=r"absent\.dev"):
        CliRunner().invoke(app, ["qa", *options], catch_exceptions=False)


def test_commands_load_nothing_heavy() -> None:
    code = "import sys, gmsa_rag.evaluation.commands; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

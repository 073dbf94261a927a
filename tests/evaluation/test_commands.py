import copy
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gmsa_rag.errors import DataError, InputError
from gmsa_rag.evaluation.abstaining import AbstainRow
from gmsa_rag.evaluation.commands import app
from gmsa_rag.evaluation.needle import NeedleRow
from gmsa_rag.evaluation.qa import QARow
from gmsa_rag.evaluation.report import read_report
from gmsa_rag.evaluation.restoration import RestorationRow
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling.checkpoint import Checkpoint

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
    assert (tmp_path / "restoration-small.heldout.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("kind", "kinds"), [("both", ["passkey", "needle"]), ("needle", ["needle"])])
def test_needle_writes_a_report(place: Path, tmp_path: Path, kind: str, kinds: list[str]) -> None:
    options = ["--file", "small.heldout", "--kind", kind, "--lengths", "40", "--depths", "0,100", "--rates", "4"]
    output = invoke(place, "needle", *options, "--samples", "2", "--out", str(tmp_path))
    report = read_report(tmp_path / "needle-small.heldout.json", NeedleRow)
    assert "| needle | 40 | 100 | 4 | 2 |" in output
    assert [(row.kind, row.rate, row.depth) for row in report.rows] == [
        (kind, rate, depth) for kind in kinds for rate in (4, None) for depth in (0, 100)
    ]
    assert report.kind == "needle"
    assert (tmp_path / "needle-small.heldout.png").read_bytes().startswith(b"\x89PNG")


def test_depths_below_nothing_are_refused(place: Path, tmp_path: Path) -> None:
    options = ["--model", "none", "--data", str(place / "data"), "--out", str(tmp_path), "--depths", "0,-1"]
    result = CliRunner().invoke(app, ["needle", *options])
    assert result.exit_code == 2
    assert "--depths" in result.output


def test_qa_writes_a_report_and_is_deterministic(place: Path, tmp_path: Path) -> None:
    options = ["--file", "small.dev", "--rates", "4,8", "--limit", "3", "--max-new-tokens", "3", "--seed", "2"]
    reports = []
    for name in ("first", "second"):
        output = invoke(place, "qa", *options, "--out", str(tmp_path / name))
        assert "| other_memories | 8 | given | own | 3 |" in output
        reports.append(read_report(tmp_path / name / "qa-small.dev.json", QARow))
    assert reports[0].rows == reports[1].rows
    assert len(reports[0].rows) == 8
    assert reports[0].setting.num_samples == 3
    assert (tmp_path / "first" / "qa-small.dev.png").read_bytes().startswith(b"\x89PNG")


def test_qa_takes_several_files_and_says_what_was_asked_of_in_whose_words(place: Path, tmp_path: Path) -> None:
    options = ["--file", "small.dev,small.dev", "--file", "same.dev", "--conditions", "closed_book, full_text"]
    options += ["--passages", "distractors", "--k", "1", "--wording", "langchain_chat", "--max-new-tokens", "2"]
    shutil.copy(place / "data" / "qa" / "small.dev.jsonl", place / "data" / "qa" / "same.dev.jsonl")
    output = invoke(place, "qa", *options, "--out", str(tmp_path))
    assert "| same.dev | full_text | - | gold among 1 others | langchain_chat | 4 |" in output
    names = [f"qa-{name}-distractors1-langchain_chat" for name in ("joint", "same.dev", "small.dev")]
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == names
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == names[1:]


def test_abstaining_is_reported(place: Path, tmp_path: Path, gmsa: GMSA) -> None:
    config = copy.deepcopy(gmsa.config)
    config.no_answer = "Not there."
    able = GMSA(Checkpoint(config, gmsa.compressor, gmsa.decoder, gmsa.tokenizer))
    able.save_pretrained(tmp_path / "able")
    options = ["--model", str(tmp_path / "able"), "--data", str(place / "data"), "--device", "cpu"]
    options += ["--file", "small.dev", "--rates", "4", "--max-new-tokens", "2", "--out", str(tmp_path), "--abstain"]
    result = CliRunner().invoke(app, ["qa", *options], catch_exceptions=False)
    assert "| memories | 4 | given | own | 8 | 4 |" in result.output
    assert [row.condition for row in read_report(tmp_path / "abstain-small.dev.json", AbstainRow).rows] == [
        "memories", "full_text",
    ]  # fmt: skip


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


@pytest.mark.parametrize("file", ["", " , "])
def test_no_question_file_is_refused_before_anything_is_loaded(place: Path, tmp_path: Path, file: str) -> None:
    options = ["--model", "none", "--data", str(place / "data"), "--out", str(tmp_path), "--file", file]
    result = CliRunner().invoke(app, ["qa", *options])
    assert result.exit_code == 2
    assert "--file" in result.output


def test_one_question_of_a_file_can_be_asked(place: Path, tmp_path: Path) -> None:
    options = ["--file", "small.dev", "--rates", "4", "--limit", "1", "--max-new-tokens", "2", "--out", str(tmp_path)]
    assert "| other_memories | 4 | given | own | 1 |" in invoke(place, "qa", *options)


@pytest.mark.parametrize(
    ("command", "options", "other"),
    [
        ("qa", ["--file", "small.dev", "--conditions", "closed_book", "--max-new-tokens", "2"], ["--limit", "2"]),
        ("restoration", ["--file", "small.heldout", "--windows", "16", "--samples", "2"], ["--samples", "3"]),
        (
            "needle",
            ["--file", "small.heldout", "--kind", "needle", "--lengths", "40", "--depths", "0", "--samples", "2"],
            ["--depths", "100"],
        ),
    ],
)
def test_a_report_is_replaced_by_one_of_the_same_setting_alone(
    place: Path, tmp_path: Path, command: str, options: list[str], other: list[str]
) -> None:
    options = [*options, "--rates", "8", "--out", str(tmp_path)]
    invoke(place, command, *options)
    invoke(place, command, *options)
    with pytest.raises(InputError, match=f"another {other[0][2:]}. Choose another --out"):
        invoke(place, command, *options, *other)


def test_what_was_asked_is_in_the_report(place: Path, tmp_path: Path) -> None:
    options = ["--file", "small.dev", "--conditions", "full_text,closed_book", "--max-new-tokens", "2", "--rates", "4"]
    invoke(place, "qa", *options, "--passages", "distractors", "--k", "2", "--out", str(tmp_path))
    setting = read_report(tmp_path / "qa-small.dev-distractors2.json", QARow).setting
    assert setting.options == {
        "rates": (4,), "limit": None, "passages": "distractors", "wording": "own",
        "conditions": ("full_text", "closed_book"), "k": 2,
    }  # fmt: skip
    assert setting.max_new_tokens == 2
    assert len(setting.digests) == 1


def test_missing_file_is_named(place: Path, tmp_path: Path) -> None:
    options = ["--model", "none", "--data", str(place / "data"), "--out", str(tmp_path), "--file", "absent.dev"]
    with pytest.raises(DataError, match=r"absent\.dev"):
        CliRunner().invoke(app, ["qa", *options], catch_exceptions=False)


def test_commands_load_nothing_heavy() -> None:
    code = "import sys, gmsa_rag.evaluation.commands; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.question_files import joint_rows, report_files
from gmsa_rag.evaluation.report import read_report
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.training.data import Question


@dataclass(frozen=True)
class Counted:
    """A row of a made-up evaluation."""

    condition: str
    num_questions: int


def count(questions: Sequence[Question]) -> list[Counted]:
    return [Counted(name, len(questions)) for name in ("memories", "full_text")]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    row = {"question": "Where?", "answers": ["there"], "gold": [0], "contexts": [{"title": "A", "text": "There."}]}
    for name, number in (("small", 2), ("large", 3)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([json.dumps(row)] * number))
    return {name: tmp_path / f"{name}.jsonl" for name in ("small", "large")}


def test_a_report_for_each_file_and_a_joint_one(gmsa: GMSA, files: dict[str, Path], tmp_path: Path) -> None:
    drawn: list[str] = []

    def plot(rows: Sequence[Counted], path: Path, file: str) -> Path:
        drawn.append(f"{path.name} {file} {len(rows)}")
        return path

    out = tmp_path / "out"
    table, path = report_files(gmsa, "tiny", files, out, count, kind="qa", seed=3, suffix="-gold", plot=plot)
    assert path == out / "qa-joint-gold.json"
    lines = ["| file | condition | num questions |", "| --- | --- | --- |"]
    lines += ["| small | memories | 2 |", "| small | full_text | 2 |"]
    lines += ["| large | memories | 3 |", "| large | full_text | 3 |"]
    assert table.splitlines() == lines
    assert drawn == ["qa-small-gold.png small 2", "qa-large-gold.png large 2"]
    small = read_report(out / "qa-small-gold.json", Counted)
    assert (small.rows, small.setting.files) == ((Counted("memories", 2), Counted("full_text", 2)), ("small.jsonl",))
    assert (small.setting.num_samples, small.setting.seed) == (2, 3)
    joint = json.loads(path.read_text())
    assert joint["setting"]["files"] == ["small.jsonl", "large.jsonl"]
    assert joint["setting"]["num_samples"] == 5
    digests = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files.values()]
    assert joint["setting"]["digests"] == digests
    assert small.setting.digests == (digests[0],)
    assert joint["rows"][2] == {"file": "large", "condition": "memories", "num_questions": 3}
    assert "| large | full_text | 3 |" in path.with_suffix(".md").read_text()


def test_one_file_needs_no_joint_report(gmsa: GMSA, files: dict[str, Path], tmp_path: Path) -> None:
    del files["large"]
    table, path = report_files(gmsa, "tiny", files, tmp_path / "out", count, kind="abstain", seed=0)
    assert path.name == "abstain-small.json"
    assert table.splitlines()[2] == "| memories | 2 |"
    assert sorted(file.name for file in path.parent.iterdir()) == ["abstain-small.json", "abstain-small.md"]


def test_reports_are_written_as_soon_as_they_are_done(gmsa: GMSA, files: dict[str, Path], tmp_path: Path) -> None:
    def fail(questions: Sequence[Question]) -> list[Counted]:
        if len(questions) == 3:
            raise ArithmeticError("interrupted")
        return count(questions)

    with pytest.raises(ArithmeticError):
        report_files(gmsa, "tiny", files, tmp_path / "out", fail, kind="qa", seed=0)
    assert (tmp_path / "out" / "qa-small.json").is_file()


def test_no_files_are_an_error(gmsa: GMSA, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected at least one question file"):
        report_files(gmsa, "tiny", {}, tmp_path / "out", count, kind="qa", seed=0)


@pytest.mark.parametrize("left", [["small"], ["small", "large"]])
def test_reports_of_another_setting_are_not_replaced(
    gmsa: GMSA, files: dict[str, Path], tmp_path: Path, left: list[str]
) -> None:
    def report(names: Sequence[str], limit: int | None, **settings: int) -> None:
        asked = {name: files[name] for name in names}
        evaluate = count if "fine" in settings else pytest.fail
        report_files(
            gmsa, "tiny", asked, tmp_path, evaluate, kind="qa", seed=settings.get("seed", 0), options={"limit": limit},
            max_new_tokens=settings.get("max_new_tokens", 16),
        )  # fmt: skip

    report(left, None, fine=1)
    before = (tmp_path / "qa-small.json").read_bytes()
    report(left, None, fine=1)
    for named, limit, settings in (("limit", 1, {}), ("seed", None, {"seed": 1}), ("tokens", 1, {"max_new_tokens": 2})):
        with pytest.raises(InputError, match=rf"qa-small\.json.*{named}.*\. Choose another --out"):
            report(["small", "large"], limit, **settings)
    assert (tmp_path / "qa-small.json").read_bytes() == before
    files["small"].write_text(files["large"].read_text())
    with pytest.raises(InputError, match="digests"):
        report(["small"], None)


def test_joint_rows_name_their_file_first() -> None:
    rows = joint_rows({"a": [Counted("x", 1)], "b": [Counted("y", 2), Counted("z", 3)]})
    assert [(row.file, row.condition, row.num_questions) for row in rows] == [
        ("a", "x", 1),
        ("b", "y", 2),
        ("b", "z", 3),
    ]

import json
import platform
from pathlib import Path

import pytest
import torch

from gmsa_rag import __version__
from gmsa_rag.errors import DataError, InputError
from gmsa_rag.evaluation.qa import QARow
from gmsa_rag.evaluation.report import Report, describe_setting, markdown_table, read_report, write_report
from gmsa_rag.evaluation.restoration import RestorationRow
from gmsa_rag.inference.engine import GMSA

ROWS = (
    QARow("memories", 4, 100, 0.25, (0.2, 0.3), 0.31, 0.4, (0.35, 0.45), 0.9, 61.5, 0),
    QARow("closed_book", None, 100, 0.01, (0.0, 0.02), 0.02, 0.03, (0.01, 0.05), None, 22.0, 0),
)


@pytest.fixture
def report(gmsa: GMSA, tmp_path: Path) -> Report[QARow]:
    setting = describe_setting(
        gmsa, tmp_path / "gmsa-mini", seed=5, files=[tmp_path / "squad1.1.dev.jsonl.gz"], num_samples=100
    )
    return Report("qa", setting, ROWS)


def test_report_round_trip(report: Report[QARow], tmp_path: Path) -> None:
    path, table = write_report(report, tmp_path / "new" / "folder", "qa-squad1.1.dev")
    assert (path.name, table.name) == ("qa-squad1.1.dev.json", "qa-squad1.1.dev.md")
    assert read_report(path, QARow) == report
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, table.name]


def test_setting_says_what_was_measured_on_what(report: Report[QARow], gmsa: GMSA) -> None:
    setting = report.setting
    assert setting.fingerprint == gmsa.fingerprint
    assert len(setting.decoder) == 64
    assert (setting.model, setting.files) == ("gmsa-mini", ("squad1.1.dev.jsonl.gz",))
    assert (setting.seed, setting.num_samples, setting.dtype, setting.device) == (5, 100, "float32", "cpu")
    assert (setting.package, setting.torch) == (__version__, torch.__version__)
    assert setting.threads == torch.get_num_threads()
    assert len(setting.date) == 10


def test_report_holds_no_path_and_no_host_name(report: Report[QARow], tmp_path: Path) -> None:
    path, table = write_report(report, tmp_path, "qa")
    for text in (path.read_text(), table.read_text()):
        assert str(tmp_path) not in text
    assert platform.node() not in str(json.loads(path.read_text())["setting"]["machine"]).split()


def test_table_has_a_row_each() -> None:
    lines = markdown_table(ROWS).splitlines()
    assert lines[0].startswith("| condition | rate | num questions | em | em interval |")
    assert lines[2] == (
        "| memories | 4 | 100 | 0.250 | 0.200 to 0.300 | 0.310 | 0.400 | 0.350 to 0.450 | 0.900 | 61.500 | 0 |"
    )
    assert "| closed_book | - |" in lines[3]
    assert {line.count("|") for line in lines} == {12}


def test_table_of_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="rows"):
        markdown_table([])


def test_failed_write_leaves_the_old_report(report: Report[QARow], tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    path, _ = write_report(report, tmp_path, "qa")
    before = path.read_bytes()

    def fail(self: Path, target: Path) -> Path:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(Report("qa", report.setting, ROWS[:1]), tmp_path, "qa")
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "qa", "setting": {}, "rows": []}'])
def test_damaged_report_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "qa.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"qa\.json"):
        read_report(path, QARow)


def test_report_of_another_kind_is_an_error(report: Report[QARow], tmp_path: Path) -> None:
    path, _ = write_report(report, tmp_path, "qa")
    with pytest.raises(DataError, match="RestorationRow"):
        read_report(path, RestorationRow)

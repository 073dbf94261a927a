import dataclasses
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from gmsa_rag import __version__
from gmsa_rag.errors import DataError, InputError
from gmsa_rag.evaluation.needle import NeedleRow
from gmsa_rag.evaluation.report import (
    Report,
    check_replaceable,
    describe_setting,
    digest_file,
    markdown_table,
    read_report,
    write_report,
)
from gmsa_rag.evaluation.restoration import RestorationRow
from gmsa_rag.inference.engine import GMSA


@dataclass(frozen=True)
class Row:
    """A row with all that a field can be."""

    condition: str
    rate: int | None
    em: float
    em_interval: tuple[float, float]
    citation_accuracy: float | None


ROWS = (Row("memories", 4, 0.25, (0.2, 0.3), 0.9), Row("closed_book", None, 0.01, (0.0, 0.02), None))


@pytest.fixture
def report(gmsa: GMSA, tmp_path: Path) -> Report[Row]:
    setting = describe_setting(
        gmsa, tmp_path / "gmsa-mini", seed=5, files=[tmp_path / "squad1.1.dev.jsonl.gz"], num_samples=100
    )
    return Report("qa", setting, ROWS)


def test_report_round_trip(report: Report[Row], tmp_path: Path) -> None:
    path, table = write_report(report, tmp_path / "new" / "folder", "qa-squad1.1.dev")
    assert (path.name, table.name) == ("qa-squad1.1.dev.json", "qa-squad1.1.dev.md")
    assert read_report(path, Row) == report
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, table.name]


def test_rows_of_all_kinds_are_read_again(report: Report[Row], tmp_path: Path) -> None:
    scores = (0.5, (0.4, 0.6), 0.3, (0.2, 0.4), 0.5, 0.4, 0.3, 0.2, 0.1, None, 0.6)
    restored = RestorationRow(128, 4, 9, *scores, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0, None, 0.1)
    found = NeedleRow("passkey", 256, 50, 4, 9, 0.5, (0.2, 0.8), 0.6, 0.0, 80.5, 0)
    skipped = NeedleRow("needle", 4096, 0, None, 9, None, None, None, None, 4200.0, 9)
    path, _ = write_report(Report("restoration", report.setting, (restored,)), tmp_path, "restoration")
    assert read_report(path, RestorationRow).rows == (restored,)
    path, _ = write_report(Report("needle", report.setting, (found, skipped)), tmp_path, "needle")
    assert read_report(path, NeedleRow).rows == (found, skipped)


def test_plot_is_written_beside_and_shown(report: Report[Row], tmp_path: Path) -> None:
    drawn: list[tuple[Row, ...]] = []

    def plot(rows: Sequence[Row], path: Path) -> Path:
        drawn.append(tuple(rows))
        path.write_bytes(b"picture")
        return path

    path, table = write_report(report, tmp_path, "qa", plot)
    assert drawn == [ROWS]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["qa.json", "qa.md", "qa.png"]
    assert "![qa](qa.png)" in table.read_text()
    assert read_report(path, Row) == report


def test_setting_says_what_was_measured_on_what(report: Report[Row], gmsa: GMSA) -> None:
    setting = report.setting
    assert setting.fingerprint == gmsa.fingerprint
    assert len(setting.decoder) == 64
    assert (setting.model, setting.files) == ("gmsa-mini", ("squad1.1.dev.jsonl.gz",))
    assert (setting.seed, setting.num_samples, setting.dtype, setting.device) == (5, 100, "float32", "cpu")
    assert (setting.package, setting.torch) == (__version__, torch.__version__)
    assert setting.threads == torch.get_num_threads()
    assert len(setting.date) == 10


def test_answers_files_and_options_are_part_of_the_setting(gmsa: GMSA, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"abc")
    setting = describe_setting(
        gmsa, "m", seed=0, files=[data], num_samples=1, max_new_tokens=16, digests=[digest_file(data)],
        options={"rates": (4, 8), "limit": None, "conditions": ("memories", "full_text")},
    )  # fmt: skip
    path, table = write_report(Report("qa", setting, ROWS), tmp_path, "qa")
    assert read_report(path, Row).setting == setting
    assert (setting.max_new_tokens, setting.digests) == (16, ("ba7816bf8f01cfea",))  # SHA-256 of "abc", FIPS 180-2
    lines = ["- max_new_tokens: 16", "- digests: ba7816bf8f01cfea"]
    lines += ["- options: rates 4, 8; limit -; conditions memories, full_text"]
    assert [line for line in table.read_text().splitlines() if line in lines] == lines
    with pytest.raises(DataError, match=r"absent\.txt"):
        digest_file(tmp_path / "absent.txt")


def test_reports_without_the_newer_fields_are_read(report: Report[Row], tmp_path: Path) -> None:
    path, _ = write_report(report, tmp_path, "qa")
    values = json.loads(path.read_text())
    for name in ("max_new_tokens", "digests", "options"):
        del values["setting"][name]
    path.write_text(json.dumps(values))
    assert read_report(path, Row) == report


def test_a_report_of_the_same_setting_may_be_replaced(report: Report[Row], tmp_path: Path) -> None:
    check_replaceable(report.setting, tmp_path / "new", "qa")
    write_report(report, tmp_path, "qa")
    rerun = dataclasses.replace(report.setting, date="2031-01-01", machine="another", threads=9, num_samples=0)
    check_replaceable(rerun, tmp_path, "qa")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"fingerprint": "f"}, "fingerprint"), ({"decoder": "d"}, "decoder"), ({"dtype": "bfloat16"}, "dtype"),
        ({"seed": 6}, "seed"), ({"files": ("a",)}, "files"), ({"digests": ("1",)}, "digests"),
        ({"max_new_tokens": 4}, "max new tokens"), ({"options": {"rates": (4,)}}, "rates"),
        ({"seed": 6, "options": {"limit": None}}, "seed, limit"),
    ],
)  # fmt: skip
def test_a_report_of_another_setting_is_not(
    report: Report[Row], tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    write_report(report, tmp_path, "qa")
    with pytest.raises(InputError, match=rf"another {named}\. Choose another --out"):
        check_replaceable(dataclasses.replace(report.setting, **changed), tmp_path, "qa")


def test_what_is_no_report_is_not_replaced(report: Report[Row], tmp_path: Path) -> None:
    (tmp_path / "qa.json").write_text("[]")
    with pytest.raises(InputError, match="one that is no report"):
        check_replaceable(report.setting, tmp_path, "qa")


def test_report_holds_no_path_and_no_host_name(report: Report[Row], tmp_path: Path) -> None:
    path, table = write_report(report, tmp_path, "qa")
    for text in (path.read_text(), table.read_text()):
        assert str(tmp_path) not in text
    assert platform.node() not in str(json.loads(path.read_text())["setting"]["machine"]).split()


def test_table_has_a_row_each() -> None:
    assert markdown_table(ROWS).splitlines() == [
        "| condition | rate | em | em interval | citation accuracy |",
        "| --- | --- | --- | --- | --- |",
        "| memories | 4 | 0.250 | 0.200 to 0.300 | 0.900 |",
        "| closed_book | - | 0.010 | 0.000 to 0.020 | - |",
    ]


def test_table_of_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="rows"):
        markdown_table([])


def test_failed_write_leaves_the_old_report(report: Report[Row], tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
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
        read_report(path, Row)


def test_report_of_another_kind_is_an_error(report: Report[Row], tmp_path: Path) -> None:
    path, _ = write_report(report, tmp_path, "qa")
    with pytest.raises(DataError, match="RestorationRow"):
        read_report(path, RestorationRow)

import io
import json
from dataclasses import dataclass

import pytest
import torch
from rich.console import Console

from gmsa_rag.benchmark.report import Bar, Report, describe_run, plot_bars, print_table, render_table, write_report
from gmsa_rag.errors import InputError


@dataclass(frozen=True)
class Row:
    way: str
    tokens_per_second: float
    count: int
    ends: tuple[float, float]
    peak_mib: float | None
    runs: tuple[float, ...]


ROWS = (
    Row("published", 12345.6, 1_000, (0.25, 0.5), None, (1.0, 2.0)),
    Row("ours", 0.12345, 2, (1.0, 2000.0), 3.5, (3.0,)),
)


def test_a_table_has_a_column_a_field_and_no_raw_runs():
    console = Console(file=io.StringIO(), width=200)
    console.print(render_table("speed", ROWS))
    printed = console.file.getvalue()
    assert "tokens per second" in printed and "runs" not in printed
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert cells == [
        ["published", "12,346", "1,000", "0.25 to 0.5", "-"],
        ["ours", "0.1235", "2", "1 to 2,000", "3.5"],
    ]
    with pytest.raises(InputError, match="rows"):
        render_table("speed", [])


def test_a_table_in_a_pipe_is_as_wide_as_it_needs(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    print_table(render_table("speed", ROWS))
    printed = capsys.readouterr().out
    assert "12,346" in printed and "…" not in printed


def test_a_report_is_written_with_its_plot(tmp_path):
    setting = describe_run("some/where/model", "cpu", seed=3, options={"rate": 8})
    report = Report("compress", setting, ROWS, {"peak": 1.5})

    def plot(rows, path):
        return plot_bars([Bar(row.way, row.count, row.ends) for row in rows], path, title="t", x_label="x")

    path = write_report(report, tmp_path / "new", "compress-model", plot)
    assert sorted(file.name for file in path.parent.iterdir()) == ["compress-model.json", "compress-model.png"]
    assert (path.parent / "compress-model.png").read_bytes().startswith(b"\x89PNG")
    read = json.loads(path.read_text(encoding="utf-8"))
    assert (read["kind"], read["notes"], read["rows"][0]["runs"]) == ("compress", {"peak": 1.5}, [1.0, 2.0])
    assert read["setting"]["model"] == "model" and read["setting"]["options"] == {"rate": 8}
    assert (read["setting"]["torch"], read["setting"]["threads"]) == (torch.__version__, torch.get_num_threads())


def test_a_number_that_is_none_is_not_written(tmp_path):
    report = Report("compress", describe_run("m", "cpu", seed=0, options={}), ROWS, {"peak": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        write_report(report, tmp_path, "name")
    assert list(tmp_path.iterdir()) == []

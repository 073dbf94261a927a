import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmsa_rag import plotting
from gmsa_rag.errors import DependencyError
from gmsa_rag.evaluation import plots
from gmsa_rag.evaluation.needle import NeedleRow
from gmsa_rag.evaluation.plots import plot_needles, plot_questions, plot_restoration
from gmsa_rag.evaluation.restoration import RestorationRow
from gmsa_rag.plotting import Line, check_plots, plot_lines
from gmsa_rag.training.logs import plot_loss

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """A row of questions that lacks what is optional."""

    condition: str
    rate: int | None
    f1: float


@dataclass(frozen=True)
class FullRow(Row):
    f1_interval: tuple[float, float]
    em: float


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list["Figure"]]:
    """Figures as they are saved."""
    found: list[Figure] = []
    save = plotting.save_figure
    for module in (plots, plotting):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: found.append(figure) or save(figure, path))
    yield found


def lines(axes: "Axes", style: str) -> list[tuple[list[float], list[float]]]:
    """Lines of a style that are drawn with values: xs and ys."""
    found = [line for line in axes.get_lines() if line.get_linestyle() == style and len(line.get_xdata())]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in found]


def restoration_row(window: int, rate: int, score: float) -> RestorationRow:
    own = (score, (score - 0.1, score + 0.1), score, (score - 0.1, score + 0.1), *[score] * 5, None, score)
    return RestorationRow(window, rate, 5, *own, *[0.1] * 7, None, 0.1)  # type: ignore[arg-type]


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n")


def test_restoration_is_drawn_beside_others_and_the_paper(tmp_path: Path, figures: list["Figure"]) -> None:
    rows = [restoration_row(64, 8, 0.5), restoration_row(64, 2, 0.9), restoration_row(128, 2, 0.8)]
    assert is_png(plot_restoration(rows, tmp_path / "r.png"))
    panels = {axes.get_title(): axes for axes in figures[0].axes}
    assert list(panels) == ["token accuracy", "BLEU", "ROUGE-L", "prefix match", "numbers restored", "names restored"]
    assert lines(panels["BLEU"], "-") == [([2, 8], [0.9, 0.5]), ([2], [0.8])]
    assert lines(panels["BLEU"], ":") == [([2, 8], [0.1, 0.1]), ([2], [0.1])]
    assert ([4, 8], [0.875, 0.74]) in lines(panels["BLEU"], "--")
    assert ([4, 8], [0.785, 0.28]) in lines(panels["prefix match"], "--")
    assert len(lines(panels["ROUGE-L"], "--")) == 3
    assert lines(panels["token accuracy"], "--") == []
    assert all(map(math.isnan, lines(panels["numbers restored"], "-")[0][1]))
    assert [label.get_text() for label in panels["BLEU"].get_xticklabels()] == ["2", "4", "8"]
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == [
        "64 tokens", "128 tokens", "256 tokens", "512 tokens", "from the memory of another passage",
        "paper, 3B to 4B models",
    ]  # fmt: skip


def test_needles_are_drawn_a_panel_a_rate(tmp_path: Path, figures: list["Figure"]) -> None:
    rows = [
        NeedleRow("passkey", length, depth, rate, 4, accuracy, None, None, None, 9.0, 0)
        for length, depth, rate, accuracy in [
            (64, 0, 4, 0.25), (64, 100, 4, 0.5), (256, 0, 4, 0.75), (256, 100, 4, 1.0),
            (64, 0, None, 1.0), (64, 100, None, 0.9), (256, 0, None, None), (256, 100, None, 0.8),
        ]
    ]  # fmt: skip
    assert is_png(plot_needles(rows, tmp_path / "n.png"))
    first, second, _ = figures[0].axes
    assert [first.get_title(), second.get_title()] == ["passkey, rate 4", "passkey, full text"]
    assert first.get_images()[0].get_array().tolist() == [[0.25, 0.75], [0.5, 1.0]]
    assert [text.get_text() for text in second.texts] == ["1.00", "-", "0.90", "0.80"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["0", "100"]


def test_questions_have_levels_where_there_is_no_rate(tmp_path: Path, figures: list["Figure"]) -> None:
    rows = [
        FullRow("memories", 8, 0.4, (0.3, 0.5), 0.2), FullRow("memories", 4, 0.6, (0.5, 0.7), 0.3),
        FullRow("full_text", None, 0.7, (0.6, 0.8), 0.5),
    ]  # fmt: skip
    assert is_png(plot_questions(rows, tmp_path / "q.png"))
    f1, em, cover = figures[0].axes
    assert lines(cover, "--") == lines(f1, "--") == []
    assert lines(f1, "-") == [([4, 8], [0.6, 0.4])]
    assert lines(em, "-") == [([4, 8], [0.3, 0.2])]
    assert [ys for _, ys in lines(f1, "-.")] == [[0.7, 0.7]]
    assert [ys for _, ys in lines(em, "-.")] == [[0.5, 0.5]]
    assert [len(axes.collections) for axes in (f1, em)] == [1, 0]  # a band of intervals


@dataclass(frozen=True)
class SelectedRow(Row):
    passages: str


@pytest.mark.parametrize(
    ("file", "f1", "cover"),
    [
        ("nq_open_oracle.dev", [0.5809, 0.5143], [0.6038, 0.5002]),
        ("hotpotqa_distractor500.dev", [0.6793, 0.5948], [0.5228, 0.4393]),
    ],
)
def test_questions_of_the_papers_datasets_have_its_points_beside_them(
    tmp_path: Path, figures: list["Figure"], file: str, f1: list[float], cover: list[float]
) -> None:
    plot_questions([SelectedRow("memories", 4, 0.5, "given")], tmp_path / "q.png", file=file)
    panels = {axes.get_title(): axes for axes in figures[0].axes}
    assert lines(panels["F1"], "--") == [([4, 8], f1)]
    assert lines(panels["answer contained (cover-EM)"], "--") == [([4, 8], cover)]
    assert lines(panels["exact match"], "--") == []  # the paper's EM is not that strict
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert "paper, Qwen3-4B fine-tuned on this dataset (its EM is close to cover-EM)" in legend


@pytest.mark.parametrize(("file", "passages"), [("squad1.1.dev", "given"), ("hotpotqa.dev", "retrieved 4 by minilm")])
def test_the_papers_points_are_not_beside_what_it_did_not_ask(
    tmp_path: Path, figures: list["Figure"], file: str, passages: str
) -> None:
    plot_questions([SelectedRow("memories", 4, 0.5, passages)], tmp_path / "q.png", file=file)
    assert all(lines(axes, "--") == [] for axes in figures[0].axes)


@pytest.mark.parametrize(
    "rows", [[Row("memories", 4, 0.5), Row("closed_book", None, 0.1)], [Row("full_text", None, 1)]]
)
def test_questions_without_optional_fields_are_drawn(tmp_path: Path, rows: list[Row]) -> None:
    assert is_png(plot_questions(rows, tmp_path / "q.png"))


def test_loss_is_drawn_where_there_is_one(tmp_path: Path, figures: list["Figure"]) -> None:
    rows = [{"step": 10, "loss": 9.0, "accuracy": 0.1}, {"step": 20, "accuracy": 0.2}, {"step": 30, "loss": 7.0}]
    assert is_png(plot_loss(rows, tmp_path / "loss.png"))
    loss, accuracy = figures[0].axes
    assert lines(loss, "-") == [([10, 30], [9.0, 7.0])]
    assert lines(accuracy, "-") == [([10, 20], [0.1, 0.2])]


def test_lines_leave_gaps_and_no_file_beside(tmp_path: Path, figures: list["Figure"]) -> None:
    path = plot_lines([Line("a", [1, 2, 3], [0.1, None, 0.3])], tmp_path / "l.png", title="t", x_label="x")
    assert is_png(path)
    assert list(tmp_path.iterdir()) == [path]
    ((_, ys),) = lines(figures[0].axes[0], "-")
    assert math.isnan(ys[1])


def test_no_global_state_is_touched(tmp_path: Path) -> None:
    plot_lines([Line("a", [1], [0.1])], tmp_path / "l.png", title="t", x_label="x")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r'^matplotlib: .*pip install "gmsa-rag\[eval\]"'):
        check_plots()

"""Plots of an evaluation's rows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmsa_rag.plotting import Line, Panel, make_figure, plot_panels, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gmsa_rag.evaluation.needle import NeedleRow
    from gmsa_rag.evaluation.restoration import RestorationRow

RESTORATION_PANELS = {
    "token_accuracy": "token accuracy",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "prefix_match": "prefix match",
    "numbers_exact": "numbers restored",
    "names_exact": "names restored",
}
PAPER_RATES = (4, 8)
# Read off a figure of the paper, so good to about 0.01: by field and length, at the rates above.
PAPER = {
    "bleu": {128: (0.91, 0.705), 256: (0.91, 0.76), 512: (0.875, 0.74)},
    "prefix_match": {128: (0.785, 0.28), 256: (0.74, 0.23), 512: (0.62, 0.17)},
    "rouge_l": {128: (0.98, 0.88), 256: (0.985, 0.915), 512: (0.96, 0.90)},
}
PAPER_LABEL = "paper, 3B to 4B models"
OTHER_LABEL = "from the memory of another passage"
QUESTION_PANELS = {"f1": "F1", "em": "exact match", "cover_em": "answer contained (cover-EM)"}
# The paper's table for Qwen3-4B, fine-tuned on each dataset, at the rates above, by the beginning of a file's name.
# What it calls EM is close to our cover-EM: an answer counts that contains a right one. Our EM is stricter.
PAPER_QUESTIONS = {
    "nq_open_oracle": {"f1": (0.5809, 0.5143), "cover_em": (0.6038, 0.5002)},
    "hotpotqa": {"f1": (0.6793, 0.5948), "cover_em": (0.5228, 0.4393)},
}
PAPER_QUESTIONS_LABEL = "paper, Qwen3-4B fine-tuned on this dataset (its EM is close to cover-EM)"


def plot_restoration(rows: Sequence["RestorationRow"], path: Path) -> Path:
    """Draw restoration by rate: a colour a length, dotted from others' memories, dashed as the paper has it.

    Args:
        rows: Of `evaluate_restoration`.
        path: The PNG file.
    """
    lengths = sorted({*PAPER["bleu"], *(row.window for row in rows)})
    colors = {length: f"C{index % 10}" for index, length in enumerate(lengths)}
    panels = [Panel(title, _restoration_lines(rows, name, colors)) for name, title in RESTORATION_PANELS.items()]
    return plot_panels(panels, path, x_label="rate", rates=True)


def plot_questions(rows: Sequence[Any], path: Path, file: str = "") -> Path:
    """Draw answers by rate, a line a condition; a condition without a rate is a horizontal line.

    Args:
        rows: Objects with `condition`, `rate` (None for none), `f1` and as there are `em`, `cover_em` and the
            intervals of all three; in a panel without a value nothing is drawn.
        path: The PNG file.
        file: Name of the questions' file. Where the paper has figures of that dataset, they are drawn beside rows that
            were asked of the file's own passages.
    """
    given = all(getattr(row, "passages", "given") == "given" for row in rows)
    paper = next((found for name, found in PAPER_QUESTIONS.items() if given and file.startswith(name)), {})
    conditions = list(dict.fromkeys(row.condition for row in rows))
    panels = []
    for name, title in QUESTION_PANELS.items():
        rated = [row for row in rows if row.rate is not None]
        lines = [
            _line([row for row in rated if row.condition == condition], name, condition, f"C{index % 10}")
            for index, condition in enumerate(conditions)
            if any(row.condition == condition for row in rated)
        ]
        if name in paper:
            lines.append(Line(PAPER_QUESTIONS_LABEL, PAPER_RATES, paper[name], "grey", "--"))
        levels = {row.condition: getattr(row, name, None) for row in rows if row.rate is None}
        panels.append(Panel(title, lines, {label: level for label, level in levels.items() if level is not None}))
    return plot_panels(panels, path, x_label="rate", rates=True)


def plot_needles(rows: Sequence["NeedleRow"], path: Path) -> Path:
    """Draw how often needles are found as a heat map of depth and length: a panel a rate, a line of panels a kind.

    Args:
        rows: Of `evaluate_needle`; cells that were not evaluated stay white.
        path: The PNG file.
    """
    kinds, rates = list(dict.fromkeys(row.kind for row in rows)), list(dict.fromkeys(row.rate for row in rows))
    figure, grid = make_figure(len(kinds), len(rates))
    panels = [(kind, rate) for kind in kinds for rate in rates]
    for axes, (kind, rate) in zip(grid, panels, strict=True):
        image = _draw_heat_map(axes, [row for row in rows if (row.kind, row.rate) == (kind, rate)])
        axes.set_title(f"{kind}, {'full text' if rate is None else f'rate {rate}'}")
    figure.colorbar(image, ax=list(grid), label="found")
    return save_figure(figure, path)


def _restoration_lines(rows: Sequence["RestorationRow"], name: str, colors: Mapping[int, str]) -> list[Line]:
    """Of one field; lines of no values stand for colours and styles in the legend."""
    legend = [(f"{length} tokens", color, "-") for length, color in colors.items()]
    legend += [(OTHER_LABEL, "grey", ":"), (PAPER_LABEL, "grey", "--")]
    lines = [Line(label, (), (), color, style) for label, color, style in legend]
    for length, color in colors.items():
        if own := [row for row in rows if row.window == length]:
            lines += [_line(own, name, "", color), _line(own, f"other_{name}", "", color, ":")]
        if length in PAPER.get(name, {}):
            lines.append(Line("", PAPER_RATES, PAPER[name][length], color, "--"))
    return lines


def _line(rows: Iterable[Any], name: str, label: str, color: str, style: str = "-") -> Line:
    """A field of rows by rate."""
    found = sorted(rows, key=lambda row: row.rate)
    return Line(
        label,
        [row.rate for row in found],
        [getattr(row, name, None) for row in found],
        color,
        style,
        [getattr(row, f"{name}_interval", None) for row in found],
    )


def _draw_heat_map(axes: "Axes", rows: Sequence["NeedleRow"]) -> Any:
    """One panel; gives the image, for the colour bar."""
    lengths, depths = sorted({row.length for row in rows}), sorted({row.depth for row in rows})
    found = {(row.length, row.depth): row.accuracy for row in rows}
    values = [[found.get((length, depth)) for length in lengths] for depth in depths]
    filled = [[math.nan if value is None else value for value in line] for line in values]
    image = axes.imshow(filled, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            text, color = ("-", "black") if value is None else (f"{value:.2f}", "white" if value < 0.6 else "black")
            axes.text(x, y, text, ha="center", va="center", color=color)
    axes.set_xticks(range(len(lengths)), labels=list(map(str, lengths)))
    axes.set_yticks(range(len(depths)), labels=list(map(str, depths)))
    axes.set_xlabel("tokens")
    axes.set_ylabel("depth, %")
    return image

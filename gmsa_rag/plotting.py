"""Plots of lines as PNG files, each written whole or not at all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmsa_rag.optional import load_optional
from gmsa_rag.writing import beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        label: In the legend; "" leaves it out.
        xs: Where, ascending.
        ys: As many values; a None leaves a gap.
        color: As matplotlib names it: "C0" to "C9", "black".
        style: "-", "--", ":" or "-.".
        intervals: Lower and upper end a value, drawn as a band; empty for none.
        marker: At each value; "" for none.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    color: str = "C0"
    style: str = "-"
    intervals: Sequence[tuple[float, float] | None] = ()
    marker: str = "o"


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above it.
        lines: What is drawn.
        levels: Horizontal lines by their labels, for what has no x.
        y_range: Ends of the y axis; None for as much as the values need.
    """

    title: str
    lines: Sequence[Line]
    levels: Mapping[str, float] = field(default_factory=dict)
    y_range: tuple[float, float] | None = (0.0, 1.02)


def check_plots() -> None:
    """Raise DependencyError if nothing can be drawn, before time is spent on what should be."""
    load_optional("matplotlib.figure")


def plot_lines(series: Sequence[Line], path: Path, *, title: str, x_label: str, rates: bool = False) -> Path:
    """Draw lines of shares, 0 to 1, on one pair of axes; the rest is as in `plot_panels`."""
    return plot_panels([Panel(title, series)], path, x_label=x_label, rates=rates)


def plot_panels(panels: Sequence[Panel], path: Path, *, x_label: str, rates: bool = False, columns: int = 3) -> Path:
    """Draw panels of lines side by side, with one legend for all.

    Args:
        panels: At least one.
        path: The PNG file; one that is there is replaced.
        x_label: Below each panel.
        rates: Whether the x axis is one of rates: doubling is one step.
        columns: Panels side by side.

    Returns:
        The path.

    Raises:
        DependencyError: If matplotlib is missing.
    """
    columns = min(columns, len(panels))
    figure, grid = make_figure(math.ceil(len(panels) / columns), columns)
    entries: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel)
        axes.set_xlabel(x_label)
        if rates:
            _scale_rates(axes, sorted({x for line in panel.lines for x in line.xs}))
        handles, labels = axes.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3)
    return save_figure(figure, path)


def make_figure(lines: int, columns: int) -> tuple["Figure", "list[Axes]"]:
    """A figure that no window shows and no global state knows, and its axes, line by line.

    Raises:
        DependencyError: If matplotlib is missing.
    """
    figure: Figure = load_optional("matplotlib.figure").Figure(
        figsize=(4.2 * columns, 3.4 * lines + 1.0), layout="constrained"
    )
    load_optional("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    return figure, list(grid.flat)


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    with beside(path) as part:
        figure.savefig(part, format="png", dpi=120)
    return path


def _draw(axes: "Axes", panel: Panel) -> None:
    for line in panel.lines:
        ys = [math.nan if y is None else y for y in line.ys]
        axes.plot(line.xs, ys, line.style, color=line.color, marker=line.marker, markersize=3, label=line.label)
        banded = [(x, ends) for x, ends in zip(line.xs, line.intervals, strict=False) if ends is not None]
        if banded:
            xs, (lows, highs) = [x for x, _ in banded], zip(*(ends for _, ends in banded), strict=True)
            axes.fill_between(xs, lows, highs, color=line.color, alpha=0.15, linewidth=0)
    for index, (label, level) in enumerate(panel.levels.items()):
        axes.axhline(level, color=f"C{9 - index % 10}", linestyle="-.", linewidth=1.2, label=label)
    axes.set_title(panel.title)
    axes.grid(alpha=0.3)
    if panel.y_range is not None:
        axes.set_ylim(*panel.y_range)


def _scale_rates(axes: "Axes", rates: Sequence[float]) -> None:
    if rates:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
        axes.set_xticks(rates, labels=[f"{rate:g}" for rate in rates])

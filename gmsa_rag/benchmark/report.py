"""Reports of benchmarks: a table for the terminal, JSON with all that is needed to judge and repeat it, and a plot."""

import dataclasses
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import transformers
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from gmsa_rag import __version__
from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.report import describe_machine
from gmsa_rag.plotting import make_figure, save_figure
from gmsa_rag.writing import beside

Row = TypeVar("Row")


@dataclass(frozen=True)
class Setting:
    """What was measured and on what. No paths and no host names, so that it can be published.

    Attributes:
        model: Name of the shape or checkpoint.
        device: Where.
        machine: Processor, cores, system, and the accelerator in use.
        threads: Of torch.
        package: Version of gmsa-rag.
        torch: Version.
        transformers: Version.
        python: Version.
        date: UTC, YYYY-MM-DD.
        seed: Of everything drawn.
        options: Of the benchmark, by name.
    """

    model: str
    device: str
    machine: str
    threads: int
    package: str
    torch: str
    transformers: str
    python: str
    date: str
    seed: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Report(Generic[Row]):
    """Rows of one benchmark.

    Attributes:
        kind: "kernel", "compress", "answer" or "store".
        setting: What was measured and on what.
        rows: Dataclasses of one type, a row an alternative.
        notes: What is no row's, by name: how far outputs differ, what was counted.
    """

    kind: str
    setting: Setting
    rows: tuple[Row, ...]
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Bar:
    """One bar of a plot.

    Attributes:
        label: Beside it.
        value: Its length.
        ends: First and third quartile, drawn as a whisker.
        color: As matplotlib names it.
    """

    label: str
    value: float
    ends: tuple[float, float]
    color: str = "C0"


def describe_run(model: str | Path, device: str | torch.device, *, seed: int, options: Mapping[str, Any]) -> Setting:
    """Describe this machine and what is about to be measured.

    Args:
        model: Shape or checkpoint; only the last part of a path is kept.
        device: Where the work is done.
        seed: Of everything drawn.
        options: Of the benchmark; values that JSON can hold.
    """
    return Setting(
        model=Path(model).name,
        device=torch.device(device).type,
        machine=describe_machine(torch.device(device)),
        threads=torch.get_num_threads(),
        package=__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
        python=platform.python_version(),
        date=datetime.now(UTC).date().isoformat(),
        seed=seed,
        options=dict(options),
    )


def render_table(title: str, rows: Sequence[Any]) -> Table:
    """A table of dataclasses of one type for rich: a column a field, "-" where a value is None.

    A field `runs` stays out; it is in the JSON.

    Raises:
        InputError: If there are no rows.
    """
    if not rows:
        raise InputError("rows", expected="at least one", got="none", remedy="Measure something first.")
    names = [field.name for field in dataclasses.fields(rows[0]) if field.name != "runs"]
    table = Table(title=title, title_justify="left")
    for name in names:
        right = any(isinstance(getattr(row, name), (int, float)) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(getattr(row, name)) for name in names))
    return table


def write_report(
    report: Report[Row], directory: Path, name: str, plot: Callable[[Sequence[Row], Path], Path] | None = None
) -> Path:
    """Write `<name>.png` and `<name>.json`, each whole or not at all, the JSON last.

    Args:
        report: What to write.
        directory: Where to; made if it is missing.
        name: Of the files, without suffix.
        plot: Draws rows into the PNG file; None draws nothing.

    Returns:
        Path of the JSON.

    Raises:
        DependencyError: If there is something to draw and matplotlib is missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if plot is not None:
        plot(report.rows, directory / f"{name}.png")
    path = directory / f"{name}.json"
    with beside(path) as part:
        content = json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False, allow_nan=False)
        part.write_text(content + "\n", encoding="utf-8")
    return path


def plot_bars(bars: Sequence[Bar], path: Path, *, title: str, x_label: str) -> Path:
    """Draw horizontal bars, the first on top.

    Args:
        bars: At least one.
        path: The PNG file; one that is there is replaced.
        title: Above them.
        x_label: Below them.

    Returns:
        The path.

    Raises:
        DependencyError: If matplotlib is missing.
    """
    figure, (axes,) = make_figure(1, 1)
    figure.set_size_inches(7.0, 1.4 + 0.45 * len(bars))
    places, values = range(len(bars)), [bar.value for bar in bars]
    whiskers = [
        [max(bar.value - bar.ends[0], 0.0) for bar in bars],
        [max(bar.ends[1] - bar.value, 0.0) for bar in bars],
    ]
    axes.barh(places, values, xerr=whiskers, color=[bar.color for bar in bars], height=0.6, capsize=3)
    axes.set_yticks(places, labels=[bar.label for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(left=0.0)
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.grid(axis="x", alpha=0.3)
    return save_figure(figure, path)


def print_table(table: Table) -> None:
    """Print a table; where a file or pipe reads it, as wide as it needs."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=Measurement.get(console, console.options.update(max_width=1_000), table).maximum)
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
    if isinstance(value, tuple):
        return " to ".join(map(_cell, value))
    return str(value)

"""What a run tells while it goes on: JSON lines, TensorBoard, a progress bar, and a plot of its losses at the end."""

import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gmsa_rag.plotting import Line, Panel, plot_panels
from gmsa_rag.writing import beside

logger = logging.getLogger(__name__)
LOG, PLOT, BOARD = "log.jsonl", "loss.png", "tensorboard"


class RunLog:
    """The log of a run in a directory; only the first of several processes writes.

    Args:
        out: Directory of the run: `log.jsonl`, `tensorboard/`, and at the end `loss.png`.
        from_step: Rows beyond this step, which a resumed run makes again, are removed.
        writes: Whether this process writes.
    """

    def __init__(self, out: Path, from_step: int, *, writes: bool = True) -> None:
        self.path, self.writes = out / LOG, writes
        self._board: Any = None
        if writes:
            rows = [row for row in read_log(self.path) if row["step"] <= from_step]
            with beside(self.path) as part:  # a run killed here keeps its log
                part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            self._board = _board(out / BOARD, from_step)

    def write(self, row: dict[str, Any]) -> None:
        """Add a row with `step` and numbers."""
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, row["step"])
            self._board.flush()

    def close(self) -> None:
        """Draw the losses."""
        if not self.writes:
            return
        if self._board is not None:
            self._board.close()
        rows = read_log(self.path)
        if rows and importlib.util.find_spec("matplotlib") is None:
            logger.warning("matplotlib is not installed: no %s is drawn", PLOT)
        elif rows:
            plot_loss(rows, self.path.with_name(PLOT))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a `log.jsonl`, none where there is no file; a last line that a killed run left unfinished is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def plot_loss(log_rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw the loss and the token accuracy of a training by step.

    Args:
        log_rows: Mappings with `step` and as there are `loss` and `accuracy`.
        path: The PNG file.
    """
    panels = []
    for name, y_range in (("loss", None), ("accuracy", (0.0, 1.02))):
        found = [(row["step"], row[name]) for row in log_rows if row.get(name) is not None]
        line = Line("", [step for step, _ in found], [value for _, value in found], marker="")
        panels.append(Panel(name, [line], y_range=y_range))
    return plot_panels(panels, path, x_label="step", columns=2)


@contextmanager
def progress(shown: bool) -> Iterator[tuple[Progress, TaskID]]:
    """A bar from 0 to 1 on standard error; nothing where that is no terminal, or in another process than the first."""
    console = Console(stderr=True)
    columns = BarColumn(20), TextColumn("{task.percentage:.1f} % {task.fields[info]}"), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        yield bar, bar.add_task("", total=1.0, info="")


def _board(folder: Path, from_step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        logger.warning("tensorboard is not installed: losses go to %s alone", LOG)
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=from_step + 1)

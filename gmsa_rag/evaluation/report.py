"""Reports: rows of an evaluation with all that is needed to judge and repeat them, as JSON and as a Markdown table."""

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import transformers

from gmsa_rag import __version__
from gmsa_rag.errors import DataError, InputError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling.checkpoint import fingerprint
from gmsa_rag.writing import beside

Row = TypeVar("Row")


@dataclass(frozen=True)
class Setting:
    """What was measured, with what, and on what. No paths and no host names, so that it can be published.

    Attributes:
        model: Name of the checkpoint, the last part of its path or hub id.
        fingerprint: Of its compressor.
        decoder: SHA-256 over the decoder's weights as they ran, 64 hex digits; a fingerprint does not tell decoders
            apart that were fine-tuned for the same compressor.
        dtype: What the decoder computed in.
        device: Where.
        machine: Processor, cores, system, and the accelerator in use.
        threads: Of torch.
        package: Version of gmsa-rag.
        torch: Version.
        transformers: Version.
        python: Version.
        date: Of the evaluation, UTC, YYYY-MM-DD.
        seed: Of everything drawn.
        files: Names of the data files.
        num_samples: Passages or questions a row is made of.
    """

    model: str
    fingerprint: str
    decoder: str
    dtype: str
    device: str
    machine: str
    threads: int
    package: str
    torch: str
    transformers: str
    python: str
    date: str
    seed: int
    files: tuple[str, ...]
    num_samples: int


@dataclass(frozen=True)
class Report(Generic[Row]):
    """Rows of one evaluation.

    Attributes:
        kind: "restoration", "needle" or "qa".
        setting: What was measured, with what, and on what.
        rows: Dataclasses of one type.
    """

    kind: str
    setting: Setting
    rows: tuple[Row, ...]


def describe_setting(
    gmsa: GMSA, model: str | Path, *, seed: int, files: Sequence[Path | str], num_samples: int
) -> Setting:
    """Describe a checkpoint and this machine.

    Args:
        gmsa: The checkpoint.
        model: What it was loaded from; only the last part is kept.
        seed: Of everything drawn.
        files: Data files; only their names are kept.
        num_samples: Passages or questions a row is made of.
    """
    device = gmsa.decoder.device
    return Setting(
        model=Path(model).name,
        fingerprint=gmsa.fingerprint,
        decoder=fingerprint(gmsa.decoder.state_dict(), gmsa.config, gmsa.tokenizer),
        dtype=str(gmsa.decoder.dtype).removeprefix("torch."),
        device=device.type,
        machine=describe_machine(device),
        threads=torch.get_num_threads(),
        package=__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
        python=platform.python_version(),
        date=datetime.now(UTC).date().isoformat(),
        seed=seed,
        files=tuple(Path(file).name for file in files),
        num_samples=num_samples,
    )


def markdown_table(rows: Sequence[Any]) -> str:
    """A Markdown table of dataclasses of one type: a column a field, "-" where a value is None.

    Raises:
        InputError: If there are no rows.
    """
    if not rows:
        raise InputError("rows", expected="at least one", got="none", remedy="Evaluate something first.")
    names = [field.name for field in dataclasses.fields(rows[0])]
    lines = [[name.replace("_", " ") for name in names], ["---"] * len(names)]
    lines += [[_cell(getattr(row, name)) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_report(
    report: Report[Row], directory: Path, name: str, plot: Callable[[Sequence[Row], Path], Path] | None = None
) -> tuple[Path, Path]:
    """Write `<name>.md`, `<name>.png` and `<name>.json`, each whole or not at all, the JSON last.

    Args:
        report: What to write.
        directory: Where to; made if it is missing.
        name: Of the files, without suffix.
        plot: Draws rows into the PNG file, such as `plots.plot_restoration`; None draws nothing.

    Returns:
        Paths of JSON and Markdown.

    Raises:
        DependencyError: If there is something to draw and matplotlib is missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lines = [f"- {key}: {_cell(value)}" for key, value in dataclasses.asdict(report.setting).items()]
    image = [] if plot is None else ["", f"![{report.kind}]({name}.png)"]
    text = "\n".join([f"# {report.kind}", "", markdown_table(report.rows), *lines, *image, ""])
    table = _replace(directory / f"{name}.md", text)
    if plot is not None:
        plot(report.rows, directory / f"{name}.png")
    content = json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False)
    return _replace(directory / f"{name}.json", content + "\n"), table


def read_report(path: Path, row: type[Row]) -> Report[Row]:
    """Read what `write_report` wrote as JSON.

    Args:
        path: The file.
        row: Dataclass of its rows.

    Raises:
        DataError: If the file cannot be read or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(row(**_tuples(fields)) for fields in values["rows"])
        return Report(values["kind"], Setting(**_tuples(values["setting"])), rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            path.name,
            expected=f"a report with rows of {row.__name__}",
            got=f"{type(error).__name__}: {error}",
            remedy="Run the evaluation again.",
        ) from error


def describe_machine(device: torch.device) -> str:
    """Processor, cores and system, and the accelerator if it is one."""
    parts = [_processor(), f"{os.cpu_count()} cores", platform.system()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join(parts)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, tuple):
        joint = " to " if value and isinstance(value[0], float) else ", "
        return joint.join(map(_cell, value))
    return str(value)


def _replace(path: Path, text: str) -> Path:
    with beside(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _processor() -> str:
    """Name of the processor; `platform` gives none on Linux."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

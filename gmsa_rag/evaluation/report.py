"""Reports: rows of an evaluation with all that is needed to judge and repeat them, as JSON and as a Markdown table."""

import dataclasses
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import transformers

from gmsa_rag import __version__
from gmsa_rag.errors import DataError, InputError, first_line
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling.checkpoint import fingerprint
from gmsa_rag.writing import beside

Row = TypeVar("Row")
# What makes two reports ones of the same setting; machine, versions and date may differ.
SETTING = ("fingerprint", "decoder", "dtype", "seed", "files", "digests", "max_new_tokens", "options")


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
        max_new_tokens: Most tokens of an answer; None where that is not chosen.
        digests: Of each data file, as `digest_file` gives it; () where none was read.
        options: What else the evaluation was called with, such as rates and conditions.
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
    max_new_tokens: int | None = None
    digests: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


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
    gmsa: GMSA, model: str | Path, *, seed: int, files: Sequence[Path | str], num_samples: int,
    max_new_tokens: int | None = None, digests: Sequence[str] = (), options: Mapping[str, Any] | None = None,
) -> Setting:  # fmt: skip
    """Describe a checkpoint and this machine.

    Args:
        gmsa: The checkpoint.
        model: What it was loaded from; only the last part is kept.
        seed: Of everything drawn.
        files: Data files; only their names are kept.
        num_samples: Passages or questions a row is made of.
        max_new_tokens: Most tokens of an answer.
        digests: Of the data files, in their order.
        options: What else the evaluation is called with: values of JSON, and tuples of them.
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
        max_new_tokens=max_new_tokens,
        digests=tuple(digests),
        options=dict(options or {}),
    )


def digest_file(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256, by which it is told from another of its name.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise DataError(
            path.name, expected="a file to read", got=first_line(error), remedy="Check its path and permissions."
        ) from error


def check_replaceable(setting: Setting, directory: Path, name: str) -> None:
    """Refuse to replace a report of another setting; call it before time is spent on a new one.

    Args:
        setting: That of the report to write; its `num_samples` may be yet unknown.
        directory: Where it will be written.
        name: Of its files, without suffix.

    Raises:
        InputError: If a report of that name is there and says of another checkpoint, data, seed or options, or does
            not say of which.
    """
    path = directory / f"{name}.json"
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))["setting"]
        wrong = _differences(old, json.loads(json.dumps(dataclasses.asdict(setting))))
        got = f"one with another {', '.join(wrong)}" if wrong else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        got = "one that is no report"
    if got:
        raise InputError(
            "out", expected=f"no {path.name}, or one of the same setting", got=got,
            remedy="Choose another --out, or remove the old report.",
        )  # fmt: skip


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
    if value is None or value == ():
        return "-"
    if isinstance(value, Mapping):
        return "; ".join(f"{name.replace('_', ' ')} {_cell(item)}" for name, item in value.items()) or "-"
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
    return {
        name: tuple(value) if isinstance(value, list) else _tuples(value) if isinstance(value, dict) else value
        for name, value in fields.items()
    }


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of what two settings, as read from JSON, do not have in common; options by their own names."""
    names = [name for name in SETTING if name != "options" and old.get(name) != new.get(name)]
    before, now = old.get("options", {}), new["options"]
    names += [name for name in {**before, **now} if before.get(name, ()) != now.get(name, ())]
    return [name.replace("_", " ") for name in names]


def _processor() -> str:
    """Name of the processor; `platform` gives none on Linux."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

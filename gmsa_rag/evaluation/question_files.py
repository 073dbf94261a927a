"""Several question files in one evaluation: a report each, and one table of all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.report import (
    Report,
    Setting,
    check_replaceable,
    describe_setting,
    digest_file,
    markdown_table,
    write_report,
)
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.training.data import Question, read_questions

Row = TypeVar("Row")
JOINT = "joint"


def report_files(
    gmsa: GMSA, model: str, files: Mapping[str, Path], out: Path,
    evaluate: Callable[[Sequence[Question]], Sequence[Row]], *, kind: str, seed: int, suffix: str = "",
    plot: Callable[..., Path] | None = None, max_new_tokens: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[str, Path]:  # fmt: skip
    """Evaluate question files one by one, and write `<kind>-<name><suffix>` for each as soon as it is done.

    Args:
        gmsa: The checkpoint.
        model: What it was loaded from.
        files: Question files by their names without suffix, at least one.
        out: Directory of the reports.
        evaluate: Gives the rows of a file's questions; a row has `num_questions`.
        kind: Of the reports: "qa" or "abstain".
        seed: Of everything drawn.
        suffix: End of the reports' names.
        plot: Draws rows into a PNG file, given the question file's name as `file`; None draws nothing.
        max_new_tokens: Most tokens of an answer, for the report.
        options: What else `evaluate` was made with, for the report.

    Returns:
        A Markdown table and the path of its report as JSON: of the one file, or of all, each row under its file's name.

    Raises:
        DataError: If a file cannot be read.
        InputError: If there is no file, or `out` holds a report of another setting that would be replaced.
    """
    setting = describe_setting(
        gmsa, model, seed=seed, files=list(files.values()), num_samples=0, max_new_tokens=max_new_tokens,
        digests=[digest_file(path) for path in files.values()], options=options,
    )  # fmt: skip
    settings = _settings(setting, files)
    for name, each in settings.items():
        check_replaceable(each, out, f"{kind}-{name}{suffix}")
    rows: dict[str, Sequence[Any]] = {}
    for name, path in files.items():
        rows[name] = evaluate(list(read_questions(path)))
        own = replace(settings[name], num_samples=rows[name][0].num_questions)
        draw = None if plot is None else partial(plot, file=name)
        written, _ = write_report(Report(kind, own, tuple(rows[name])), out, f"{kind}-{name}{suffix}", draw)
    if len(files) == 1:
        return markdown_table(rows[name]), written
    joint = joint_rows(rows)
    total = replace(setting, num_samples=sum(found[0].num_questions for found in rows.values()))
    written, _ = write_report(Report(kind, total, tuple(joint)), out, f"{kind}-{JOINT}{suffix}")
    return markdown_table(joint), written


def joint_rows(rows: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Rows of several files as one list, each with its file's name as a field `file` in front.

    Args:
        rows: Dataclasses of one type by the name of their file.
    """
    kind = type(next(iter(rows.values()))[0])
    names = [field.name for field in fields(kind)]
    joint = make_dataclass(f"File{kind.__name__}", ["file", *names], frozen=True)
    return [joint(file, *(getattr(row, name) for name in names)) for file, found in rows.items() for row in found]


def _settings(setting: Setting, files: Mapping[str, Path]) -> dict[str, Setting]:
    """Settings of all reports by the files' names, that of the joint one last, out of that of all files."""
    if not files:
        raise InputError("files", expected="at least one question file", got="none", remedy="Name some.")
    pairs = zip(files, setting.files, setting.digests, strict=True)
    own = {name: replace(setting, files=(file,), digests=(digest,)) for name, file, digest in pairs}
    return own if len(files) == 1 else {**own, JOINT: setting}

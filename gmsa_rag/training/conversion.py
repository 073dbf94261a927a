"""Reads a public dataset, from the hub or from local files, as a stream, and converts its rows."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gmsa_rag.errors import DataError, DependencyError, InputError
from gmsa_rag.training.converters import DATASETS, HubDataset
from gmsa_rag.training.data import Skipped
from gmsa_rag.training.files import Row
from gmsa_rag.training.question_rows import parse_row

BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}


def find_dataset(name: str) -> HubDataset:
    """A dataset by its name in `DATASETS`.

    Raises:
        InputError: If there is none.
    """
    if name not in DATASETS:
        raise InputError("dataset", expected=f"one of {', '.join(DATASETS)}", got=name, remedy="Choose one of these.")
    return DATASETS[name]


def load_rows(
    dataset: HubDataset,
    split: str,
    inputs: Sequence[Path] = (),
    *,
    config: str | None = None,
    revision: str | None = None,
) -> Iterator[Row]:
    """Rows of a dataset as they are published.

    Args:
        dataset: Which one.
        split: Its part, such as train. Single files are read whatever their split.
        inputs: Files (.json, .jsonl, .parquet or .arrow, gzipped or not) or one directory to read in the hub's place.
        config: Its configuration, None for the dataset's own choice; of a directory, None for its only one.
        revision: Branch, tag or commit on the hub.
    Raises:
        DependencyError: If the package `datasets` is missing.
        InputError: If the files are of several kinds, or of none that is known.
        DataError: If the rows cannot be reached or read.
    """
    library = _library()
    arguments = _local(inputs, split, config) if inputs else _hub(dataset, config, revision)
    errors = (OSError, RuntimeError, ValueError, library.exceptions.DatasetsError)
    try:
        yield from library.load_dataset(**arguments, split=split, streaming=True)
    except errors as error:
        raise DataError(
            str(arguments["path"]) if not inputs else ", ".join(map(str, inputs)),
            expected=f"a dataset with a split {split} that can be read",
            got=str(error).strip() or type(error).__name__,
            remedy="Check the name, --split, --config and the connection, or name downloaded files with --input.",
        ) from error


def convert(name: str, rows: Iterable[Row], *, strict: bool = False, skipped: Skipped) -> Iterator[Row]:
    """Rows of a dataset in our form, each checked to be one that `read_questions` reads.

    Args:
        name: The dataset's name in `DATASETS`.
        rows: Its rows.
        strict: Whether a row that cannot be converted is an error. Otherwise it is left out.
        skipped: Takes the names of rows that are left out.
    Raises:
        InputError: If there is no such dataset.
        DataError: If `strict` and a row cannot be converted; the row is named.
    """
    dataset = find_dataset(name)
    for number, row in enumerate(rows, 1):
        try:
            converted = dataset.convert(row)
            question = parse_row(converted)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if strict:
                raise _unusable(f"{name}, row {number}", error) from error
            skipped.add(f"{name}, row {number}: {_reason(error)}")
            continue
        title = question.titles[question.gold[0]]
        yield {**converted, "id": str(converted["id"] or f"{name}-{number}"), "title": title, "source": name}


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DependencyError(
            "datasets", expected="the package to be installed", got=str(error),
            remedy='Run: pip install "gmsa-rag[train]"',
        ) from error  # fmt: skip
    return datasets


def _hub(dataset: HubDataset, config: str | None, revision: str | None) -> dict[str, Any]:
    return {"path": dataset.hub, "name": config or dataset.config, "revision": revision}


def _local(inputs: Sequence[Path], split: str, config: str | None) -> dict[str, Any]:
    if len(inputs) == 1 and inputs[0].is_dir():
        return {"path": str(inputs[0]), "name": config}
    kinds = {BUILDERS.get(Path(path.name.removesuffix(".gz")).suffix) for path in inputs}
    kind = kinds.pop()
    if kinds or kind is None:
        raise InputError(
            "--input", expected=f"one directory, or files of one kind of {', '.join(BUILDERS)}",
            got=", ".join(map(str, inputs)), remedy="Convert files of several kinds one kind at a time.",
        )  # fmt: skip
    return {"path": kind, "data_files": {split: [str(path) for path in inputs]}}


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _unusable(row: str, error: Exception) -> DataError:
    return DataError(
        row,
        expected="a row with a question, an answer and its passage",
        got=_reason(error),
        remedy="Leave --strict out to have such rows left out.",
    )

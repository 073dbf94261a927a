"""Reads a public dataset, from the hub or from local files, as a stream, and converts its rows."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gmsa_rag.errors import DataError, DependencyError, InputError
from gmsa_rag.training.converters import DATASETS, HubDataset
from gmsa_rag.training.data import Skipped
from gmsa_rag.training.files import Row, open_data
from gmsa_rag.training.question_rows import parse_object, parse_row

BUILDERS = {".json": "json", ".parquet": "parquet", ".arrow": "arrow"}
LINES = ".jsonl"  # read by us: `datasets` gives up a whole file for one broken line


class Line(NamedTuple):
    """A line of a local file. It is parsed where rows are converted: a broken one is left out as any other row."""

    place: str
    content: bytes


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
) -> Iterator[Row | Line]:
    """Rows of a dataset as they are published, those of .jsonl files as lines that are not blank.

    Args:
        dataset: Which one.
        split: Its part, such as train. Single files are read whatever their split.
        inputs: Files (.json, .jsonl, .parquet or .arrow, gzipped or not) or one directory to read in the hub's place.
        config: Its configuration, None for the dataset's own choice; of a directory, None for its only one.
        revision: Branch, tag or commit on the hub.
    Raises:
        DependencyError: If the package `datasets` is missing, which only .jsonl files do without.
        InputError: If the files are of several kinds, or of none that is known.
        DataError: If the rows cannot be reached or read, or there are none.
    """
    count = 0
    rows = _lines(inputs) if _suffixes(inputs) == {LINES} else _streamed(dataset, split, inputs, config, revision)
    for row in rows:
        yield row
        count += 1
    if not count:
        raise DataError(
            _names(inputs) or dataset.hub, expected="at least one row", got="none",
            remedy="Check --input, or name another --split.",
        )  # fmt: skip


def _streamed(
    dataset: HubDataset, split: str, inputs: Sequence[Path], config: str | None, revision: str | None
) -> Iterator[Row]:
    library = _library()
    arguments = _local(inputs, split, config) if inputs else _hub(dataset, config, revision)
    errors = (OSError, RuntimeError, ValueError, library.exceptions.DatasetsError)
    try:
        yield from library.load_dataset(**arguments, split=split, streaming=True)
    except StopIteration:  # how `datasets` meets an empty file
        return
    except errors as error:
        raise DataError(
            _names(inputs) or dataset.hub,
            expected=f"a dataset with a split {split} that can be read",
            got=str(error).strip() or type(error).__name__,
            remedy="Check the name, --split, --config and the connection, or name downloaded files with --input.",
        ) from error


def convert(name: str, rows: Iterable[Row | Line], *, strict: bool = False, skipped: Skipped) -> Iterator[Row]:
    """Rows of a dataset in our form, each checked to be one that `read_questions` reads.

    Args:
        name: The dataset's name in `DATASETS`.
        rows: Its rows, or lines that hold them.
        strict: Whether a row that cannot be converted is an error. Otherwise it is left out.
        skipped: Takes the names of rows that are left out.
    Raises:
        InputError: If there is no such dataset.
        DataError: If `strict` and a row cannot be converted; the row is named.
    """
    dataset = find_dataset(name)
    for number, row in enumerate(rows, 1):
        place = row.place if isinstance(row, Line) else f"{name}, row {number}"
        try:
            converted = dataset.convert(parse_object(row.content) if isinstance(row, Line) else row)
            question = parse_row(converted)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if strict:
                raise _unusable(place, error) from error
            skipped.add(f"{place}: {_reason(error)}")
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
    kind, *others = _suffixes(inputs)
    if others or kind not in BUILDERS:
        raise InputError(
            "--input", expected=f"one directory, or files of one kind of {', '.join([LINES, *BUILDERS])}",
            got=_names(inputs), remedy="Convert files of several kinds one kind at a time.",
        )  # fmt: skip
    return {"path": BUILDERS[kind], "data_files": {split: [str(path) for path in inputs]}}


def _lines(inputs: Sequence[Path]) -> Iterator[Line]:
    for path in inputs:
        with open_data(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield Line(f"{path.name}, row {number}", line)


def _suffixes(inputs: Sequence[Path]) -> set[str]:
    return {"" if path.is_dir() else Path(path.name.removesuffix(".gz")).suffix for path in inputs}


def _names(inputs: Sequence[Path]) -> str:
    return ", ".join(map(str, inputs))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _unusable(row: str, error: Exception) -> DataError:
    return DataError(
        row,
        expected="a row with a question, an answer and its passage",
        got=_reason(error),
        remedy="Leave --strict out to have such rows left out.",
    )

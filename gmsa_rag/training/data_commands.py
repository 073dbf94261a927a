"""`gmsa data convert | make | split | check`: question files on the command line."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmsa_rag.commands.options import printable

if TYPE_CHECKING:
    from gmsa_rag.training.data import Skipped

app = typer.Typer(no_args_is_help=True, help="Make question files for training, and check them.")

Out = Annotated[Path, typer.Option(metavar="FILE.jsonl[.gz]", help="File to write; replaced if it is there.")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help=".jsonl or .jsonl.gz files.")]
Texts = Annotated[
    list[Path], typer.Argument(metavar="TEXT_FILE...", help=".txt or .txt.gz files, documents separated by <|doc|>.")
]
DATASET_NAMES = "squad, natural_questions, hotpotqa, 2wikimultihopqa, narrativeqa or multinews."


@app.command()
def convert(
    name: Annotated[str, typer.Argument(metavar="NAME", help=DATASET_NAMES)],
    out: Out,
    split: Annotated[str, typer.Option(help="Part of the dataset.")] = "train",
    input_: Annotated[
        list[Path] | None,
        typer.Option(
            "--input", help="Local file (repeat it for several) or directory, in the hub's place.", exists=True
        ),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the dataset.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to write at most.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be used.")] = False,
) -> None:
    """Convert a public question dataset."""
    import itertools

    from gmsa_rag.training import conversion
    from gmsa_rag.training.data import Skipped
    from gmsa_rag.training.files import check_apart, write_rows

    for path in input_ or []:
        check_apart({"--input": path, "--out": out})
    skipped = Skipped()
    dataset = conversion.find_dataset(name)
    rows = conversion.load_rows(dataset, split, input_ or [], config=config, revision=revision)
    converted = conversion.convert(name, rows, strict=strict, skipped=skipped)
    written = write_rows(out, itertools.islice(converted, limit))
    _name(skipped)
    typer.echo(f"{out}: {written} rows written, {skipped.count} left out")


@app.command()
def make(
    files: Texts,
    out: Out,
    questions: Annotated[int, typer.Option(min=1, help="Questions to make.")],
    passages: Annotated[int, typer.Option(min=1, help="Passages of a question, the one with the answer included.")] = 5,
    words: Annotated[int, typer.Option(min=10, help="Words of a passage, about.")] = 120,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
) -> None:
    """Make questions from plain text: blanks and questions about a passage among others."""
    import itertools

    from gmsa_rag.training.data import read_documents
    from gmsa_rag.training.files import check_apart, write_rows
    from gmsa_rag.training.made import make_rows

    for path in files:
        check_apart({"TEXT_FILE": path, "--out": out})
    documents = itertools.chain.from_iterable(map(read_documents, files))
    rows = make_rows(documents, passages=passages, words=words, seed=seed)
    written = write_rows(out, itertools.islice(rows, questions))
    typer.echo(f"{out}: {written} rows written" + " (the texts give no more)" * (written < questions))


@app.command()
def split(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .jsonl or .jsonl.gz file.")],
    train: Annotated[Path, typer.Option(metavar="FILE.jsonl[.gz]", help="File to write the rows to train on.")],
    validation: Annotated[Path, typer.Option(metavar="FILE.jsonl[.gz]", help="File to write the rows to choose by.")],
    share: Annotated[float, typer.Option(help="Share of the articles to hold out.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Which articles are held out.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first malformed row.")] = False,
) -> None:
    """Hold out some articles of a question file, to choose settings by."""
    from gmsa_rag.training.data import Skipped
    from gmsa_rag.training.files import check_apart, write_rows
    from gmsa_rag.training.splitting import split_rows

    check_apart({"FILE": file, "--train": train, "--validation": validation})
    for out, held_out in ((train, False), (validation, True)):
        skipped, parts = Skipped(), Counter[bool | None]()  # of each reading the same
        rows = split_rows(
            file, validation=held_out, share=share, seed=seed, strict=strict, skipped=skipped, parts=parts
        )
        typer.echo(f"{out}: {write_rows(out, rows)} rows written")
    if parts[None]:
        typer.echo(f"{parts[None]} rows in neither part: their gold passages are of articles of both", err=True)
    _name(skipped)


@app.command()
def check(
    files: Files,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a row is malformed.")] = False,
) -> None:
    """Count the questions of question files, and name their malformed rows."""
    from gmsa_rag.training.data import Skipped, read_rows

    skipped, questions, passages = Skipped(), 0, 0
    for path in files:
        for _, question in read_rows(path, strict=False, skipped=skipped):
            questions += 1
            passages += len(question.passages)
    _name(skipped)
    rows = questions + skipped.count
    typer.echo(f"{rows} rows: {questions} questions of {passages} passages, {skipped.count} malformed")
    if strict and skipped.count:
        raise typer.Exit(1)


def _name(skipped: "Skipped") -> None:
    for row in skipped.rows:
        typer.echo(printable(f"left out: {row}"), err=True)
    if more := skipped.count - len(skipped.rows):
        typer.echo(f"and {more} more", err=True)

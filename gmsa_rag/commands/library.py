"""`gmsa index`, `gmsa ask` and `gmsa forget`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmsa_rag.commands.options import Device, Model, Rate, existing_store, printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from gmsa_rag.results import Reply

Embedding = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        help="minilm, or the name or directory of a sentence-transformers model. "
        "Without it: the one the store was made with, or minilm.",
    ),
]


def index(
    documents: Annotated[Path, typer.Argument(metavar="DIR_OR_JSONL", help="Directory, .txt, .md or .jsonl file.")],
    out: Annotated[Path, typer.Option(metavar="STORE", help="SQLite file to write to; made if missing.")],
    rate: Rate = 8,
    model: Model = None,
    embedder: Embedding = None,
    device: Device = "auto",
    words: Annotated[int, typer.Option(min=0, help="Length of a passage; 0 leaves texts whole.")] = 200,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compress the store's other passages again with this checkpoint.")
    ] = False,
) -> None:
    """Embed and compress documents into a store."""
    from gmsa_rag.documents import read_documents, root_of
    from gmsa_rag.pipeline import Library

    read = read_documents(documents, words=words)
    with _progress() as progress, Library.open(out, model=model, embedder=embedder, device=device) as library:
        task = progress.add_task("indexing", total=len(read))
        done = library.add(
            read,
            rate,
            root=root_of(documents),
            recompute=recompute,
            progress=lambda count, total: progress.update(task, completed=count, total=total),
        )
        held = len(library.index)
    typer.echo(
        f"{done.passages} passages read: {done.num_tokens} tokens in {done.num_soft_tokens} soft tokens (rate {rate}); "
        f"{held} passages in {out}, {done.computed} memories computed, {done.seconds:.1f} s"
    )
    if done.removed:
        typer.echo(f"{done.removed} passages that are no longer in the documents left the index")


def ask(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="What `gmsa index` wrote.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Passages to retrieve.")] = 3,
    text: Annotated[bool, typer.Option("--text", help="Answer from the full text of the passages.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compress again what has no memory of this checkpoint.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 32,
    model: Model = None,
    embedder: Embedding = None,
    device: Device = "auto",
) -> None:
    """Answer a question from the memories of the nearest passages."""
    existing_store(store)
    from gmsa_rag.pipeline import Library

    with Library.open(store, model=model, embedder=embedder, device=device) as library:
        reply = library.ask(question, k, from_text=text, recompute=recompute, max_new_tokens=max_tokens)
    typer.echo(_as_json(reply) if as_json else "\n".join(map(printable, _lines(reply))))


def forget(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="What `gmsa index` wrote.")],
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="As `gmsa ask --json` prints them.")],
) -> None:
    """Remove passages and their memories from a store."""
    existing_store(store)
    from gmsa_rag import pipeline

    typer.echo(f"{pipeline.forget(store, ids)} passages and their memories left {store}")


def _lines(reply: "Reply") -> list[str]:
    saved = reply.positions_text - reply.positions
    share = saved / reply.positions_text
    seconds = reply.seconds
    answer = reply.answer
    notes = " (abstained)" * answer.abstained + " (cut off: see --max-tokens)" * (answer.finish_reason == "length")
    lines = [f"answer: {answer.text or '(none)'}{notes}"]
    for source in reply.sources:
        mark = " cited" * (source in reply.cited) + " left out" * (source.number in answer.dropped)
        lines.append(f"  [{source.number}] {source.title or source.id} ({source.score:.2f}){mark}")
    read = "full text" if reply.from_text else "memories"
    lines += [
        f"read: {read}; prompt positions: {reply.positions} with memories, {reply.positions_text} with full text "
        f"({saved} tokens saved, {share:.0%})",
        f"time: retrieval {_ms(seconds.retrieval)}, fetch {_ms(seconds.fetch)}, "
        f"first token {_ms(seconds.first_token)}, total {_ms(seconds.total)}",
    ]
    return lines


def _as_json(reply: "Reply") -> str:
    values = asdict(reply)
    answer = values.pop("answer")
    head = {"answer": answer.pop("text"), **answer}
    return json.dumps(head | values, ensure_ascii=False, indent=2)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def _progress() -> "Progress":
    """A bar on stderr, so that what is piped on is the result alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)

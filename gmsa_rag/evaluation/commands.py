"""`gmsa eval restoration | qa`: the evaluations on the command line."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Evaluate a checkpoint. The same seed gives the same figures.")

Model = Annotated[str, typer.Option(help="Bundled name, directory or hub id of a checkpoint.")]
Data = Annotated[Path, typer.Option(help="Directory of the data.", exists=True, file_okay=False)]
Out = Annotated[Path, typer.Option(help="Directory of the report, as JSON and Markdown.", file_okay=False)]
Seed = Annotated[int, typer.Option(help="Of everything drawn.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's own choice.", min=0)]


@app.command()
def restoration(
    model: Model,
    data: Data,
    out: Out,
    file: Annotated[str, typer.Option(help="Text file, by its name without suffix.")] = "wikipedia_en.heldout",
    windows: Annotated[str, typer.Option(help="Tokens of a passage, with commas between.")] = "64,128,256",
    rates: Annotated[str, typer.Option(help="Rates, with commas between.")] = "2,4,8,16",
    samples: Annotated[int, typer.Option(help="Passages of each length.", min=2)] = 100,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = 0,
) -> None:
    """Restore passages from their memories: token accuracy, BLEU, ROUGE-L, prefix and exact match."""
    sizes, chosen = _numbers(windows, "--windows"), _numbers(rates, "--rates")
    from gmsa_rag.evaluation.report import Report, describe_setting, markdown_table, write_report
    from gmsa_rag.evaluation.restoration import evaluate_restoration
    from gmsa_rag.inference.engine import GMSA
    from gmsa_rag.training.data import find_files, read_documents
    from gmsa_rag.training.pretraining import TEXT_SUFFIXES

    _set_threads(threads)
    files = find_files(data, [file], "text", TEXT_SUFFIXES)
    texts = [text for path in files for text in read_documents(path)]
    gmsa = GMSA.from_pretrained(model, device=device, dtype=dtype)
    rows = evaluate_restoration(gmsa, texts, windows=sizes, rates=chosen, samples=samples, seed=seed)
    setting = describe_setting(gmsa, model, seed=seed, files=files, num_samples=samples)
    path, _ = write_report(Report("restoration", setting, tuple(rows)), out, f"restoration-{file}")
    typer.echo(f"{markdown_table(rows)}\n{path}")


@app.command()
def qa(
    model: Model,
    data: Data,
    out: Out,
    file: Annotated[str, typer.Option(help="Question file, by its name without suffix.")] = "squad1.1.dev",
    rates: Annotated[str, typer.Option(help="Rates, with commas between.")] = "4,8",
    conditions: Annotated[
        str, typer.Option(help="What to answer from, with commas between.")
    ] = "memories,other_memories,closed_book,full_text",
    limit: Annotated[int, typer.Option(help="Ask so many questions, drawn at random; 0 asks all.", min=0)] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 16,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = 0,
) -> None:
    """Answer questions from memories; beside them from others' memories, from none, and from full text."""
    chosen = _numbers(rates, "--rates")
    from gmsa_rag.evaluation.qa import evaluate_questions
    from gmsa_rag.evaluation.report import Report, describe_setting, markdown_table, write_report
    from gmsa_rag.inference.engine import GMSA
    from gmsa_rag.training.data import find_files, read_questions
    from gmsa_rag.training.keft import QUESTION_SUFFIXES

    _set_threads(threads)
    files = find_files(data, [file], "qa", QUESTION_SUFFIXES)
    questions = [question for path in files for question in read_questions(path)]
    gmsa = GMSA.from_pretrained(model, device=device, dtype=dtype)
    rows = evaluate_questions(
        gmsa, questions, conditions=[name.strip() for name in conditions.split(",")], rates=chosen,
        max_new_tokens=max_new_tokens, limit=limit or None, seed=seed,
    )  # fmt: skip
    setting = describe_setting(gmsa, model, seed=seed, files=files, num_samples=rows[0].num_questions)
    path, _ = write_report(Report("qa", setting, tuple(rows)), out, f"qa-{file}")
    typer.echo(f"{markdown_table(rows)}\n{path}")


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"expected whole numbers with commas between, got {text!r}", param_hint=option
        ) from error
    if min(numbers) < 1:
        raise typer.BadParameter(f"expected numbers >= 1, got {text!r}", param_hint=option)
    return numbers


def _set_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)

"""`gmsa eval restoration | needle | qa | ablation`: the evaluations on the command line."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from gmsa_rag.evaluation.report import Setting
    from gmsa_rag.inference.engine import GMSA

app = typer.Typer(no_args_is_help=True, help="Evaluate a checkpoint. The same seed gives the same figures.")

Model = Annotated[str, typer.Option(help="Bundled name, directory or hub id of a checkpoint.")]
Data = Annotated[Path, typer.Option(help="Directory of the data.", exists=True, file_okay=False)]
Out = Annotated[Path, typer.Option(help="Directory of the report, as JSON and Markdown.", file_okay=False)]
Seed = Annotated[int, typer.Option(help="Of everything drawn.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
QuestionFiles = Annotated[
    list[str] | None,
    typer.Option(
        help="Question files, by name without suffix; repeated, or with commas between.", show_default="squad1.1.dev"
    ),
]
Conditions = Annotated[
    str | None, typer.Option(help="What to answer from, with commas between.", show_default="all there are")
]
Passages = Annotated[
    Literal["given", "gold", "distractors", "retrieved"],
    typer.Option(help="What to ask of: a question's own passages, the gold ones, these among others, or the closest."),
]
WordingName = Annotated[
    str, typer.Option(help="Words of the prompt: own, langchain, langchain_chat, llama_index, llama_index_chat, ...")
]
NeedleKind = Literal["passkey", "needle", "both"]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's own choice.", min=0)]


@app.command()
def restoration(
    model: Model,
    data: Data,
    out: Out,
    file: Annotated[str, typer.Option(help="Text file, by its name without suffix.")] = "wikipedia_en.heldout",
    windows: Annotated[str, typer.Option(help="Tokens of a passage, with commas between.")] = "128,256,512",
    rates: Annotated[str, typer.Option(help="Rates, with commas between.")] = "2,4,8,16,32",
    samples: Annotated[int, typer.Option(help="Passages of each length.", min=2)] = 100,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = 0,
) -> None:
    """Restore passages from their memories: token accuracy, BLEU, ROUGE, prefix and exact match, numbers, names."""
    asked: dict[str, Any] = {
        "windows": _numbers(windows, "--windows"), "rates": _numbers(rates, "--rates"), "samples": samples
    }  # fmt: skip
    from gmsa_rag.evaluation.plots import plot_restoration
    from gmsa_rag.evaluation.report import Report, markdown_table, write_report
    from gmsa_rag.evaluation.restoration import evaluate_restoration
    from gmsa_rag.inference.engine import GMSA
    from gmsa_rag.plotting import check_plots

    check_plots()
    _set_threads(threads)
    files, texts = _read_texts(data, file)
    gmsa = GMSA.from_pretrained(model, device=device, dtype=dtype)
    setting = _new_setting(out, f"restoration-{file}", gmsa, model, files, seed, asked)
    rows = evaluate_restoration(gmsa, texts, seed=seed, **asked)
    report = Report("restoration", setting, tuple(rows))
    path, _ = write_report(report, out, f"restoration-{file}", plot_restoration)
    typer.echo(f"{markdown_table(rows)}\n{path}")


@app.command()
def needle(
    model: Model,
    data: Data,
    out: Out,
    file: Annotated[str, typer.Option(help="Text file, by its name without suffix.")] = "wikipedia_en.heldout",
    kind: Annotated[
        NeedleKind, typer.Option(help="What is hidden: a number, a made-up fact, or each in turn.")
    ] = "both",
    lengths: Annotated[str, typer.Option(help="Tokens of a haystack, with commas between.")] = "256,1024",
    depths: Annotated[
        str, typer.Option(help="Where it is hidden, 0 to 100 %, with commas between.")
    ] = "0,25,50,75,100",
    rates: Annotated[str, typer.Option(help="Rates, with commas between; full text is read, too.")] = "1,4,8",
    samples: Annotated[int, typer.Option(help="Haystacks of each length.", min=2)] = 20,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = 0,
) -> None:
    """Hide a sentence among passages and ask for it, from memories, from others' memories and from full text."""
    asked: dict[str, Any] = {
        "lengths": _numbers(lengths, "--lengths"), "depths": _numbers(depths, "--depths", least=0),
        "rates": _numbers(rates, "--rates"), "samples": samples,
    }  # fmt: skip
    from gmsa_rag.evaluation.haystack import KINDS
    from gmsa_rag.evaluation.needle import MAX_NEW_TOKENS, evaluate_needle
    from gmsa_rag.evaluation.plots import plot_needles
    from gmsa_rag.evaluation.report import Report, markdown_table, write_report
    from gmsa_rag.inference.engine import GMSA
    from gmsa_rag.plotting import check_plots

    check_plots()
    _set_threads(threads)
    files, texts = _read_texts(data, file)
    gmsa = GMSA.from_pretrained(model, device=device, dtype=dtype)
    asked["kinds"] = KINDS if kind == "both" else (kind,)
    setting = _new_setting(out, f"needle-{file}", gmsa, model, files, seed, asked, MAX_NEW_TOKENS)
    rows = evaluate_needle(gmsa, texts, seed=seed, **asked)
    path, _ = write_report(Report("needle", setting, tuple(rows)), out, f"needle-{file}", plot_needles)
    typer.echo(f"{markdown_table(rows)}\n{path}")


@app.command()
def qa(
    model: Model,
    data: Data,
    out: Out,
    file: QuestionFiles = None,
    rates: Annotated[str, typer.Option(help="Rates, with commas between.")] = "4,8",
    conditions: Conditions = None,
    passages: Passages = "given",
    k: Annotated[int, typer.Option("--k", help="Distractors to add, or passages to retrieve.", min=1)] = 4,
    embedder: Annotated[str, typer.Option(help="Embedding model to retrieve with.")] = "minilm",
    wording: WordingName = "own",
    abstain: Annotated[bool, typer.Option("--abstain", help="Ask with the gold passages, and without them.")] = False,
    limit: Annotated[int, typer.Option(help="Ask so many questions, drawn at random; 0 asks all.", min=0)] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 16,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = 0,
) -> None:
    """Answer questions from memories; beside them from others' memories, none, full text, and text cut as short."""
    chosen, names = _numbers(rates, "--rates"), _file_names(file or ["squad1.1.dev"])
    from gmsa_rag.evaluation.abstaining import ABSTAIN_CONDITIONS, evaluate_abstaining
    from gmsa_rag.evaluation.conditions import CONDITIONS
    from gmsa_rag.evaluation.plots import plot_questions
    from gmsa_rag.evaluation.qa import evaluate_questions
    from gmsa_rag.evaluation.question_files import report_files
    from gmsa_rag.inference.engine import GMSA
    from gmsa_rag.plotting import check_plots
    from gmsa_rag.training.data import find_files
    from gmsa_rag.training.keft import QUESTION_SUFFIXES

    check_plots()
    _set_threads(threads)
    files = dict(zip(names, find_files(data, names, "qa", QUESTION_SUFFIXES), strict=True))
    gmsa = GMSA.from_pretrained(model, device=device, dtype=dtype)
    known = ABSTAIN_CONDITIONS if abstain else CONDITIONS
    asked: dict[str, Any] = {"rates": chosen, "limit": limit or None, "passages": passages, "wording": wording}
    asked["conditions"] = tuple(_names([conditions])) if conditions else known
    evaluate = partial(
        evaluate_abstaining if abstain else evaluate_questions, gmsa, max_new_tokens=max_new_tokens, seed=seed, k=k,
        embedder=embedder, **asked,
    )  # fmt: skip
    table, path = report_files(
        gmsa, model, files, out, evaluate, kind="abstain" if abstain else "qa", seed=seed,
        suffix=_suffix(passages, k, wording), plot=None if abstain else plot_questions, max_new_tokens=max_new_tokens,
        options=asked | _selection_options(passages, k, embedder),
    )  # fmt: skip
    typer.echo(f"{table}\n{path}")


@app.command()
def ablation(
    data: Data,
    out: Annotated[Path, typer.Option(help="Directory of all runs and of the report.", file_okay=False)],
    recipe: Annotated[
        Path, typer.Option(help="YAML recipe, or a bundled one's name, of small stages bounded by steps.")
    ] = Path("gmsa-ablation-cpu"),
    base: Annotated[
        Path | None,
        typer.Option(help="Directory of a pretrained causal LM.", show_default="one pretrained by the recipe"),
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="Variants, with commas between.", show_default="all there are")
    ] = None,
    text_file: Annotated[
        str, typer.Option(help="Text file to restore from, by its name without suffix.")
    ] = "wikipedia_en.heldout",
    questions: Annotated[
        str, typer.Option(help="Question file to ask from, by its name without suffix.")
    ] = "squad1.1.dev",
    rates: Annotated[
        str | None,
        typer.Option(help="Rates to evaluate, with commas between.", show_default="those of KEFT's last phase"),
    ] = None,
    samples: Annotated[int, typer.Option(help="Passages to restore.", min=2)] = 100,
    limit: Annotated[int, typer.Option(help="Ask so many questions, drawn at random; 0 asks all.", min=0)] = 500,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Threads = 0,
) -> None:
    """Train variants and baselines of GMSA from one small base, and compare them; an interrupted call goes on."""
    chosen = None if rates is None else _numbers(rates, "--rates")
    from gmsa_rag.evaluation.ablation_report import make_plan, make_probe, report_ablation
    from gmsa_rag.evaluation.metrics import check_text_metrics
    from gmsa_rag.evaluation.report import markdown_table
    from gmsa_rag.evaluation.variants import VARIANTS, check_variants
    from gmsa_rag.plotting import check_plots

    names = tuple(_names([variants])) if variants is not None else VARIANTS
    check_variants(names)
    check_plots()
    check_text_metrics()
    _set_threads(threads)
    plan = make_plan(recipe, data, out, base=base, rates=chosen, seed=seed, device=device)
    probe = make_probe(plan, text_file, questions, samples=samples, limit=limit or None)
    rows, path = report_ablation(plan, probe, names, (base or recipe).stem)
    typer.echo(f"{markdown_table(rows)}\n{path}")


def _new_setting(
    out: Path, name: str, gmsa: "GMSA", model: str, files: Sequence[Path], seed: int, asked: Mapping[str, Any],
    max_new_tokens: int | None = None,
) -> "Setting":  # fmt: skip
    """What is going to be measured; InputError if a report of something else is in its way."""
    from gmsa_rag.evaluation.report import check_replaceable, describe_setting, digest_file

    setting = describe_setting(
        gmsa, model, seed=seed, files=files, num_samples=asked["samples"], max_new_tokens=max_new_tokens,
        digests=[digest_file(path) for path in files], options=asked,
    )  # fmt: skip
    check_replaceable(setting, out, name)
    return setting


def _file_names(texts: Sequence[str]) -> list[str]:
    names = _names(texts)
    if not names:
        raise typer.BadParameter(f"expected names of question files, got {','.join(texts)!r}", param_hint="--file")
    return names


def _suffix(passages: str, k: int, wording: str) -> str:
    """End of a report's name: what it was asked of, in whose words, where that is not the default."""
    numbered = f"{passages}{k}" if passages in ("distractors", "retrieved") else passages
    return "".join(f"-{part}" for part in (numbered, wording) if part not in ("given", "own"))


def _selection_options(passages: str, k: int, embedder: str) -> dict[str, Any]:
    """What passages are selected by, as far as it matters; of a path to an embedding model its end."""
    return {
        **({"k": k} if passages in ("distractors", "retrieved") else {}),
        **({"embedder": Path(embedder).name} if passages == "retrieved" else {}),
    }


def _read_texts(data: Path, name: str) -> tuple[list[Path], list[str]]:
    """The text files of a name, and their documents."""
    from gmsa_rag.training.data import find_files, read_documents
    from gmsa_rag.training.pretraining import TEXT_SUFFIXES

    files = find_files(data, [name], "text", TEXT_SUFFIXES)
    return files, [text for path in files for text in read_documents(path)]


def _names(texts: Sequence[str]) -> list[str]:
    """Names with commas between, each once."""
    return list(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))


def _numbers(text: str, option: str, least: int = 1) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"expected whole numbers with commas between, got {text!r}", param_hint=option
        ) from error
    if min(numbers) < least:
        raise typer.BadParameter(f"expected numbers >= {least}, got {text!r}", param_hint=option)
    return numbers


def _set_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)

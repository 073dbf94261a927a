"""`gmsa bench compress | kernel | answer | store`: speed and memory, each beside its baselines, in one run."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    import torch

Row = TypeVar("Row")

app = typer.Typer(no_args_is_help=True, help="Measure speed and memory, each beside its baselines in the same run.")

Model = Annotated[
    str | None, typer.Option(help="Bundled name, directory or hub id of a checkpoint.", show_default="gmsa-mini")
]
Shape = Annotated[
    str | None,
    typer.Option(
        help="Random weights of a published shape instead: llama-3.2-3b, qwen3-4b, qwen3-0.6b or gmsa-mini.",
        show_default=False,
    ),
]
Repeats = Annotated[int, typer.Option(help="Rounds that count; in each, every alternative runs once.", min=1)]
Seed = Annotated[int, typer.Option(help="Of weights and token ids drawn.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtypes = Annotated[str, typer.Option(help="What to compute in, with commas between: float32, bfloat16, float16.")]
Dtype = Annotated[str, typer.Option(help="What to compute in: float32, bfloat16 or float16.")]
EncoderLayers = Annotated[
    int, typer.Option(help="Layers of a shape's encoder; 0 takes as many as the shape has by itself.", min=0)
]
GrowthTokens = Annotated[str, typer.Option(help="Tokens in passages as long as the window, with commas between.")]
PeakTflops = Annotated[
    float, typer.Option(help="Peak of the device in the first dtype, 1e12 a second; 0 finds it out.", min=0)
]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's own choice.", min=0)]
Out = Annotated[
    Path | None, typer.Option(help="Directory to write JSON and a plot to.", file_okay=False, show_default="nowhere")
]


@app.command()
def compress(
    model: Model = None,
    shape: Shape = None,
    passages: Annotated[int, typer.Option(help="Passages to compress.", min=1)] = 256,
    min_tokens: Annotated[int, typer.Option(help="Fewest tokens of a passage.", min=1)] = 40,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a passage.", min=1)] = 400,
    rate: Annotated[int, typer.Option(help="Tokens per soft token.", min=1)] = 8,
    encoder_layers: EncoderLayers = 0,
    dtype: Dtypes = "float32",
    growth: Annotated[
        bool, typer.Option("--growth", help="Measure ours alone, against the number of passages and tokens.")
    ] = False,
    growth_passages: Annotated[str, typer.Option(help="Ragged passages, with commas between.")] = "1,4,16,64,256",
    growth_tokens: GrowthTokens = "2048,8192,32768,131072",
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in one more round.")] = True,
    peak_tflops: PeakTflops = 0.0,
    repeats: Repeats = 3,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 0,
    out: Out = None,
) -> None:
    """Compress passages of random tokens, ours beside the published implementation's way."""
    sizes, totals = _numbers(growth_passages, "--growth-passages"), _numbers(growth_tokens, "--growth-tokens")
    from gmsa_rag.benchmark.compress import Workload, draw_passages, measure_compress, plot_compress
    from gmsa_rag.benchmark.growth import measure_all_growth, plot_growth
    from gmsa_rag.benchmark.shapes import pick_compressor

    place, dtypes = _start(device, dtype, threads, out)
    name, compressor, window = pick_compressor(model, shape, device=place, dtype=dtypes[0], layers=encoder_layers)
    vocabulary = int(compressor.encoder.config.vocab_size)
    drawn = draw_passages(passages, min_tokens, min(max_tokens, window), vocabulary=vocabulary, seed=seed)
    workload = Workload(drawn, rate, window)
    options = {
        "passages": passages, "min_tokens": min_tokens, "max_tokens": min(max_tokens, window), "rate": rate,
        "encoder_layers": compressor.encoder.config.num_hidden_layers, "repeats": repeats,
    }  # fmt: skip
    report = partial(_report, name=name, device=place, seed=seed, options=options, out=out)
    if growth:
        grown, notes = measure_all_growth(
            compressor, workload, dtypes, sizes, totals, vocabulary=vocabulary, seed=seed, repeats=repeats,
            memory=memory,
        )  # fmt: skip
        report("growth", grown, notes, plot_growth)
        return
    rows, found = measure_compress(
        compressor, workload, dtypes, repeats=repeats, memory=memory, peak_tflops=peak_tflops or None
    )
    report("compress", rows, found, plot_compress)


@app.command()
def kernel(
    widths: Annotated[str, typer.Option(help="Widths of a state, with commas between.")] = "1024,2048,3072,4096",
    tokens: Annotated[int, typer.Option(help="States, of ragged passages.", min=1)] = 65_536,
    rate: Annotated[int, typer.Option(help="States a group.", min=1)] = 4,
    dtype: Annotated[str, typer.Option(help="Of the states: float32, bfloat16 or float16.")] = "bfloat16",
    repeats: Repeats = 20,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 0,
    out: Out = None,
) -> None:
    """Merge groups fused with the norms around them, beside the eager composition and a plain copy."""
    sizes = _numbers(widths, "--widths")
    from gmsa_rag.benchmark.kernel import measure_kernel, plot_kernel

    place, dtypes = _start(device, dtype, threads, out)
    rows = [
        row
        for width in sizes
        for row in measure_kernel(width, tokens, rate, device=place, dtype=dtypes[0], repeats=repeats, seed=seed)
    ]
    notes = {} if any(row.way == "triton" for row in rows) else {
        "note": f"Triton does not run on {place} here: the library's plain path was measured in its place."
    }  # fmt: skip
    options = {"widths": sizes, "tokens": tokens, "rate": rate, "dtype": dtype, "repeats": repeats}
    _report("kernel", rows, notes, plot_kernel, name="group-merging", device=place, seed=seed, options=options, out=out)


@app.command()
def answer(
    model: Model = None,
    shape: Shape = None,
    passages: Annotated[
        str, typer.Option(help="Passages of the question, several numbers with commas between.")
    ] = "20",
    tokens: Annotated[int, typer.Option(help="Tokens of each passage.", min=8)] = 130,
    context: Annotated[
        str, typer.Option(help="Tokens of all passages together, in place of --passages.", show_default=False)
    ] = "",
    rates: Annotated[str, typer.Option(help="Tokens per soft token, with commas between.")] = "4,8,16",
    new_tokens: Annotated[int, typer.Option(help="Of each answer.", min=2)] = 32,
    encoder_layers: EncoderLayers = 0,
    numbered: Annotated[
        bool, typer.Option(help="Number the passages by the checkpoint's template; else they touch.")
    ] = True,
    cache: Annotated[str, typer.Option(help="Of the decoder: auto, static or dynamic.")] = "auto",
    dtype: Dtype = "float32",
    repeats: Repeats = 5,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 0,
    out: Out = None,
) -> None:
    """Answer a question from memories, beside full text through the same engine and by transformers."""
    counts, chosen = _numbers(passages, "--passages"), _numbers(rates, "--rates")
    if context:
        counts = [max(1, round(total / tokens)) for total in _numbers(context, "--context")]
    from gmsa_rag.benchmark.answer import measure_answers, plot_answers
    from gmsa_rag.benchmark.engines import engine_name, pick_engine

    place, dtypes = _start(device, dtype, threads, out)
    gmsa = pick_engine(model, shape, device=place, dtype=dtypes[0], layers=encoder_layers, seed=seed)
    gmsa.decoding.cache = cache
    if not numbered:
        gmsa.config.passage_template = "{passage}"
    rows, notes = measure_answers(gmsa, counts, tokens, chosen, new_tokens=new_tokens, repeats=repeats)
    options = {
        "passages": counts, "tokens": tokens, "rates": chosen, "new_tokens": new_tokens, "repeats": repeats,
        "encoder_layers": gmsa.config.encoder_layers, "dtype": dtype, "cache": cache,
        "numbered": numbered,
    }  # fmt: skip
    name = engine_name(model, shape)
    _report("answer", rows, notes, plot_answers, name=name, device=place, seed=seed, options=options, out=out)


@app.command()
def store(
    model: Model = None,
    shape: Shape = None,
    memories: Annotated[str, typer.Option(help="Memories of one call, with commas between.")] = "1,20,100",
    tokens: Annotated[int, typer.Option(help="Tokens of each passage.", min=8)] = 130,
    rates: Annotated[str, typer.Option(help="Tokens per soft token, with commas between.")] = "4,8,16",
    dtype: Dtype = "float32",
    repeats: Repeats = 5,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 0,
    out: Out = None,
) -> None:
    """Write and read memories, beside compressing them again; their bytes beside text and KV cache."""
    counts, chosen = _numbers(memories, "--memories"), _numbers(rates, "--rates")
    from gmsa_rag.benchmark.engines import engine_name, pick_engine
    from gmsa_rag.benchmark.store import measure_store, plot_store

    place, dtypes = _start(device, dtype, threads, out)
    gmsa = pick_engine(model, shape, device=place, dtype=dtypes[0], seed=seed)
    rows = measure_store(gmsa, counts, tokens, chosen, repeats=repeats)
    options = {"memories": counts, "tokens": tokens, "rates": chosen, "repeats": repeats, "dtype": dtype}
    name = engine_name(model, shape)
    _report("store", rows, {}, plot_store, name=name, device=place, seed=seed, options=options, out=out)


def _start(device: str, dtypes: str, threads: int, out: Path | None) -> tuple[str, "list[torch.dtype]"]:
    """Device and dtypes by their names; threads set, and a plot known to be possible if one is wanted."""
    import torch

    from gmsa_rag.inference.loading import resolve_device, resolve_dtype
    from gmsa_rag.plotting import check_plots

    if out is not None:
        check_plots()
    if threads:
        torch.set_num_threads(threads)
    place = resolve_device(device)
    names = list(dict.fromkeys(name.strip() for name in dtypes.split(",")))
    found = [resolve_dtype(name, place) for name in names]
    if None in found:
        raise typer.BadParameter("expected float32, bfloat16 or float16", param_hint="--dtype")
    return place, [dtype for dtype in found if dtype is not None]


def _report(
    kind: str,
    rows: Sequence[Row],
    notes: Mapping[str, Any],
    plot: Callable[[Sequence[Row], Path], Path],
    *,
    name: str,
    device: str,
    seed: int,
    options: Mapping[str, Any],
    out: Path | None,
) -> None:
    """Print the table, the notes and where it was measured; write JSON and plot if there is a place for them."""
    from gmsa_rag.benchmark.report import Report, describe_run, print_table, render_table, write_report

    setting = describe_run(name, device, seed=seed, options=options)
    print_table(render_table(f"{kind}: {name}", rows))
    for key, value in notes.items():
        typer.echo(f"{key.replace('_', ' ')}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
    typer.echo(f"{setting.machine}; {setting.threads} threads; torch {setting.torch}; seed {seed}; {setting.date}")
    if out is not None:
        path = write_report(Report(kind, setting, tuple(rows), notes), out, f"{kind}-{name}", plot)
        typer.echo(str(path))


def _numbers(text: str, option: str) -> list[int]:
    """Whole numbers >= 1 with commas between."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise typer.BadParameter(f"expected numbers >= 1 with commas between, got {text!r}", param_hint=option)
    return [int(part) for part in parts]

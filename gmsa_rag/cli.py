"""The `gmsa` command. What a subcommand needs is imported when it runs, so that `gmsa --help` is quick."""

import os
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gmsa_rag import __version__
from gmsa_rag.benchmark import commands as benchmark
from gmsa_rag.commands import doctor, library, memories, published
from gmsa_rag.errors import GMSAError
from gmsa_rag.evaluation import commands as evaluation
from gmsa_rag.training import commands as training
from gmsa_rag.training import data_commands as data


class _Group(TyperGroup):
    """Turns a GMSAError into one message and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GMSAError as error:
            typer.secho(f"gmsa: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they would print the texts and memories at hand
    help="Soft-token compression for retrieval-augmented generation.",
)
app.command("index")(library.index)
app.command("ask")(library.ask)
app.command("forget")(library.forget)
app.command("compress")(memories.compress)
app.command("restore")(memories.restore)
app.command("doctor")(doctor.doctor)
app.command("import-published")(published.import_published)
app.add_typer(training.app, name="train")
app.add_typer(evaluation.app, name="eval")
app.add_typer(data.app, name="data")
app.add_typer(benchmark.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gmsa-rag {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Soft-token compression for retrieval-augmented generation."""
    # Read by transformers and huggingface_hub when they are imported, which no subcommand has done yet.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", module=r"transformers|sentence_transformers")


if __name__ == "__main__":
    app()

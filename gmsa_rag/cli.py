"""The `gmsa` command."""

import typer

from gmsa_rag.training import commands

app = typer.Typer(no_args_is_help=True, help="Soft-token compression for retrieval-augmented generation.")
app.add_typer(commands.app, name="train")

if __name__ == "__main__":
    app()

"""``python -m benchmarks``. Exit code 1: two results differ that must agree; 2: an error of the user."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from benchmarks.decoding import bench_decoder
from benchmarks.evaluation import bench_eval
from benchmarks.picture import bench_picture
from benchmarks.training import bench_train
from benchmarks.tutorial import bench_tutorial
from mobillama_v.errors import MobiLlamaVError


class Commands(TyperGroup):
    """The commands; a user's error is one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except MobiLlamaVError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Commands,
    help="Measure the project beside other software and other methods.",
    no_args_is_help=True,
    add_completion=False,
)
app.command("decoder")(bench_decoder)
app.command("eval")(bench_eval)
app.command("picture")(bench_picture)
app.command("train")(bench_train)
app.command("tutorial")(bench_tutorial)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks")

"""The command ``mobillama-v train``; it imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mobillama_v.train.recipe import key_help, recipe_names

app = typer.Typer(add_completion=False)


class TrainCommand(TyperCommand):
    """``train RECIPE …``, and ``train plot RUN``: no recipe has that name, and a file's ends with .yaml."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Hand over what follows ``plot``."""
        if args[:1] != ["plot"]:
            return super().make_context(info_name, args, parent=parent, **extra)
        plots = typer.Typer(add_completion=False)
        plots.command("plot")(plot)
        return typer.main.get_command(plots).make_context(f"{info_name} plot", args[1:], parent=parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the context is of."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


def _print_keys(wanted: bool) -> None:
    if wanted:
        print(key_help())
        raise typer.Exit


@app.command("train", cls=TrainCommand, epilog="Draw what came of it: mobillama-v train plot RUN")
def train(
    recipe: Annotated[
        str, typer.Argument(help=f"A recipe of the package ({', '.join(recipe_names())}) or a .yaml file.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values that replace the recipe's.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last complete checkpoint in the output folder.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be trained, from what and for how long.")
    ] = False,
    keys: Annotated[
        bool,
        typer.Option("--keys", callback=_print_keys, is_eager=True, help="List every key of a recipe, and end."),
    ] = False,
) -> None:
    """Train a model by a recipe: stage 1 (projector), stage 2 (projector and decoder), or text only."""
    from mobillama_v.train.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    loaded.require_paths()
    if dry_run:
        from mobillama_v.train.setup import Setup

        print(Setup.of(loaded).describe())
        return
    from mobillama_v.train.trainer import run

    run(loaded, resume=resume)


def plot(
    run: Annotated[Path, typer.Argument(help="Output folder of a training.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The PNG to write; by default curves.png in that folder.")
    ] = None,
) -> None:
    """Draw the curves of a training: loss, learning rate, tokens a second, validations."""
    from mobillama_v.train.plot import draw

    path = run / "curves.png" if out is None else out
    draw(run, path)
    print(f"curves: {path}")

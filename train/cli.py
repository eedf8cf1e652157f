"""The command ``mobillama-v train``; it imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from mobillama_v.train.recipe import key_help, recipe_names


def _print_keys(wanted: bool) -> None:
    if wanted:
        print(key_help())
        raise typer.Exit


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

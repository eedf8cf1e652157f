"""The command ``mobillama-v train``; it imports what it needs when it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mobillama_v.errors import RecipeError, needs
from mobillama_v.train.recipe import Recipe
from mobillama_v.train.recipe_files import key_help, load_recipe, recipe_names

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
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu", metavar="KIND", help="With --dry-run: plan for this kind, such as a100-80gb or rtx-4090."
        ),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="N,…", help="How many of them, each in turn; 1,8,32 by default.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option("--mfu", min=0.01, max=1.0, help="Share of the GPU's peak that your trainings reach."),
    ] = None,
    keys: Annotated[
        bool,
        typer.Option("--keys", callback=_print_keys, is_eager=True, help="List every key of a recipe, and end."),
    ] = False,
) -> None:
    """Train a model by a recipe: stage 1 (projector), stage 2 (projector and decoder), or text only."""
    loaded = load_recipe(recipe, overrides)
    if (gpus is not None or mfu is not None) and gpu is None:
        raise RecipeError("--gpus and --mfu need a kind of GPU; add --gpu, such as --gpu a100-80gb.")
    if dry_run:
        with needs("training", "train"):
            print(_plan(loaded, gpu, gpus or "1,8,32", mfu))
        return
    if gpu is not None:
        raise RecipeError("--gpu is for planning; add --dry-run.")
    with needs("training", "train"):
        from mobillama_v import distributed
        from mobillama_v.train.run import run

        run(loaded, resume=resume)
    distributed.cleanup()


def plot(
    run: Annotated[Path, typer.Argument(help="Output folder of a training.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The PNG to write; by default curves.png in that folder.")
    ] = None,
) -> None:
    """Draw the curves of a training: loss, learning rate, tokens a second, validations."""
    from mobillama_v.train.monitor.plot import draw

    path = run / "curves.png" if out is None else out
    draw(run, path)
    print(f"curves: {path}")


def _plan(recipe: Recipe, gpu: str | None, gpus: str, mfu: float | None) -> str:
    """What a dry run prints: of the start folder and the data where both are named, else of what the recipe assumes."""
    from mobillama_v.train.planner import plan
    from mobillama_v.train.planner.gpus import gpu as find_gpu

    seconds: float | None = None
    kind = None if gpu is None else find_gpu(gpu)
    counts = [int(count) for count in gpus.split(",")] if re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", gpus) else []
    if not counts:
        raise RecipeError(f"--gpus must be numbers with commas between them, such as 1,8,32, not {gpus!r}.")
    if (recipe.model.start and recipe.data.json) or recipe.assume is None:
        recipe.require_paths()
        from mobillama_v.train.build import Setup

        setup = Setup.of(recipe)
        spec, stats, lines = setup.model.config.spec, setup.stats(), [setup.describe()]
        images = len(setup.samples.image_paths())
        if recipe.data.features is not None and kind is None:
            seconds = setup.seconds_per_image()
    else:
        spec, stats = plan.assumed_spec(recipe), plan.assumed_stats(recipe)
        lines, images = [plan.describe_assumed(recipe, spec, stats)], round(stats.samples * stats.images)
    lines.append(plan.describe_checkpoints(recipe, spec))
    if recipe.data.features is not None:
        lines.append(plan.describe_features(spec, recipe.data.features, images, seconds))
    if kind is not None:
        mfu = plan.default_mfu(recipe, spec, stats) if mfu is None else mfu
        lines.append(plan.describe_gpus(recipe, spec, stats, kind, counts, mfu))
    return "\n".join(lines)

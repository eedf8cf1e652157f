"""What ``eval score``, ``eval prepare`` and ``eval run`` share: options of the benchmarks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mobillama_v.cli.options import with_options

DataOption = Annotated[
    Path, typer.Option("--data", "-d", help="The benchmark's files; or a folder with a sub-folder for each benchmark.")
]


def with_benchmark_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of benchmarks, and their values by name as its parameter ``options``.

    Args:
        names: those that it has; all without a name.
    """
    every = inspect.signature(_options, eval_str=True).parameters
    chosen = [every[name] for name in names or every]
    return lambda command: with_options(command, "options", chosen, dict)


def _options(
    split: Annotated[
        str | None,
        typer.Option(help="gqa: testdev_balanced, val_balanced; scienceqa: test, val, train, minitest, minival."),
    ] = None,
    ocr: Annotated[
        str | None,
        typer.Option(
            help="textvqa: rosetta; custom: none; or rapidocr to read the words in the pictures (extra ocr); none "
            "tells no OCR tokens."
        ),
    ] = None,
    consistency: Annotated[
        bool, typer.Option("--consistency", help="gqa: ask and score all questions of the tier, for consistency.")
    ] = False,
    questions: Annotated[
        Path | None, typer.Option(help="custom: the question file; else one of LLaVA's, to take the prompts from.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="custom: exact, vqa, anls or yesno.")] = None,
    prompt: Annotated[str | None, typer.Option(help="custom: as-is, or short to ask for a short answer.")] = None,
) -> Any:
    """Of this function only its parameters are used."""

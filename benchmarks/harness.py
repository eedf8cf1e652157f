"""What all measurements share: turns, ratios, what they were made on, and where they are written."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mobillama_v.cli.bench import spread

OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Write the measurement as JSON.")]


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The names, another one first at each turn, so that what else the machine does hurts all of them."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def times_as_fast(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The ratios of their seconds to mine, turn by turn: median, least and most."""
    return spread([b / a for a, b in zip(mine, theirs, strict=True)])


def machine() -> dict[str, Any]:
    """What a measurement was made on."""
    import torch

    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}


def finish(facts: dict[str, Any], text: str, output: Path | None) -> None:
    """Print a measurement, and write it.

    Raises:
        DataError: the file cannot be written.
    """
    from mobillama_v.eval.store import write_output

    print(text)
    if output:
        write_output(output, json.dumps(facts, indent=1) + "\n")

"""``python -m benchmarks tutorial FOLDER``: what the tutorial teaches and costs with the weights of this version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from mobillama_v.errors import DataError
from mobillama_v.eval.results import read_result, results_of

WHEN = ("before", "after")
PAGE = Path(__file__).parents[1] / "docs" / "tutorial-digits.md"


def bench_tutorial(
    folder: Annotated[
        Path, typer.Argument(help="A new folder, where the tutorial's commands are run.", file_okay=False)
    ],
) -> None:
    """Run the tutorial's commands as they stand on its page, and show its scores before and after, and the minutes."""
    if folder.exists():
        raise DataError(f"{str(folder)!r} is there already; name a new folder.")
    folder.mkdir(parents=True)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    start = time.monotonic()
    for block in blocks[1:]:  # the first one installs
        subprocess.run(["bash", "-e", "-c", block], cwd=folder, env=environment, check=True)
    minutes = (time.monotonic() - start) / 60
    for name, title in (("digits", "handwritten digits"), ("old", "easy-VQA")):
        before, after = (read_result(results_of(folder / "runs" / f"{name}-{when}")["custom"]) for when in WHEN)
        typer.echo(f"{title}: {before.headline} before, {after.headline} after")
    typer.echo(f"{minutes:.1f} minutes on {os.cpu_count()} cores")

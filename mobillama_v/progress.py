"""How far long work is, on stderr: a bar on a terminal, elsewhere a line now and then. Only process 0 shows it."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

from mobillama_v import distributed

_EVERY = 15.0  # seconds between two lines in a file


class Progress:
    """Shows stages one after another; call it with a stage, how much is done, and of how much.

    ``unit`` names what is counted, such as "questions".
    """

    def __init__(self, unit: str = "") -> None:
        self._unit = unit
        self._live: Any = None
        self._tasks: dict[str, Any] = {}
        self._start = self._said = time.monotonic()
        if sys.stderr.isatty() and distributed.rank() == 0:
            from rich import progress
            from rich.console import Console

            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn(unit),
                progress.TimeRemainingColumn(),
            )
            self._live = progress.Progress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` of ``stage``."""
        now = time.monotonic()
        if self._live is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._live.add_task(stage, total=total)
            self._live.update(self._tasks[stage], completed=done)
        elif now - self._said >= _EVERY and distributed.rank() == 0:
            self._said = now
            left = int((total - done) * (now - self._start) / max(done, 1))
            text = f"{stage}: {done:,} of {total:,} {self._unit}".rstrip()
            with suppress(OSError):
                print(f"{text}, {left // 60}:{left % 60:02d} min left", file=sys.stderr, flush=True)

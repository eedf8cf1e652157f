"""A progress bar on stderr for work whose amount is known; where that is no terminal, a line now and then."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

_EVERY = 15.0  # seconds between two lines in a file


class ProgressBar:
    """Shows stages one after another; call it with a stage, how much is done, and of how much."""

    def __init__(self) -> None:
        self._live: Any = None
        self._tasks: dict[str, Any] = {}
        self._said = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._live = Progress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> ProgressBar:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` of ``stage``."""
        if self._live is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._live.add_task(stage, total=total)
            self._live.update(self._tasks[stage], completed=done)
            return
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            with suppress(OSError):
                print(f"{stage}: {done / max(total, 1):.0%}", file=sys.stderr, flush=True)

"""How far an evaluation is: questions (or pictures) a second and the time left, on stderr."""

from __future__ import annotations

import sys
import time

from mobillama_v.eval.distributed import World

_EVERY = 15.0  # seconds between lines in a file; a terminal's line is written over


class Progress:
    """Counts this process's questions; only the first of several processes says so."""

    def __init__(self, name: str, *, total: int, world: World, unit: str = "questions") -> None:
        self._unit = unit
        self._name, self._total, self._world, self._done = name, total, world, 0
        self._start = self._said = time.monotonic()
        self._live = sys.stderr.isatty()

    def advance(self, count: int) -> None:
        """Some more are done."""
        self._done += count
        now = time.monotonic()
        if self._live or now - self._said >= _EVERY:
            self._said = now
            self._say(now)

    def end(self) -> None:
        """All are."""
        if self._done:
            self._say(time.monotonic())
            if self._live and self._world.rank == 0:
                print(file=sys.stderr)

    def _say(self, now: float) -> None:
        if self._world.rank:
            return
        speed = self._done / max(now - self._start, 1e-9)
        share = f" (process 1 of {self._world.size})" if self._world.size > 1 else ""
        text = (
            f"{self._name}: {self._done:,} of {self._total:,} {self._unit}{share}, {speed:.1f} {self._unit}/s, "
            f"{clock((self._total - self._done) / max(speed, 1e-9))} left"
        )
        print(f"\r{text}  " if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

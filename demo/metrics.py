"""Counters, gauges and histograms in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from collections.abc import Callable

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What a server counts; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}
        self._counts: dict[str, dict[str, float]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}
        self._observed: dict[str, list[float]] = {}

    def counter(self, name: str, text: str) -> None:
        """Announce a counter."""
        self._help[name], self._counts[name] = ("counter", text), {}

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Announce a gauge and where its value comes from."""
        self._help[name], self._gauges[name] = ("gauge", text), value

    def histogram(self, name: str, text: str) -> None:
        """Announce a histogram of seconds."""
        self._help[name], self._observed[name] = ("histogram", text), [0.0] * (len(SECONDS) + 2)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Count up."""
        inside = ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items())
        with self._lock:
            counts = self._counts[name]
            counts[inside] = counts.get(inside, 0) + amount

    def observe(self, name: str, seconds: float) -> None:
        """Enter one duration in a histogram."""
        with self._lock:
            *buckets, _ = values = self._observed[name]
            at = next((i for i, bound in enumerate(SECONDS) if seconds <= bound), len(buckets) - 1)
            values[at] += 1
            values[-1] += seconds

    def text(self) -> str:
        """Everything, as a scrape answers."""
        lines = []
        with self._lock:
            for name, (kind, text) in self._help.items():
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                if kind == "counter":
                    found = self._counts[name] or {"": 0}
                    lines += [
                        f"{name}{f'{{{inside}}}' if inside else ''} {value:.15g}" for inside, value in found.items()
                    ]
                elif kind == "gauge":
                    lines.append(f"{name} {self._gauges[name]():.15g}")
                else:
                    lines += self._histogram(name)
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str) -> list[str]:
        *buckets, total = self._observed[name]
        lines, below = [], 0.0
        for bound, count in zip((*(f"{each:g}" for each in SECONDS), "+Inf"), buckets, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below:.15g}')
        return [*lines, f"{name}_sum {total:.6f}", f"{name}_count {below:.15g}"]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

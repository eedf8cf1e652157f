"""Threads for what must not hold up the event loop.

Large work has one thread of its own, so that its memory is bounded and small work never waits behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from mobillama_v.demo.limits import Limits

P = ParamSpec("P")
T = TypeVar("T")
LARGE_BYTES, LARGE_PIXELS = 2_000_000, 4_000_000
"""A request of more bytes is large, and so is a picture of more pixels."""
SMALL_THREADS = 2
_BYTES_OF_BYTE, _BYTES_OF_PIXEL = 5, 20  # measured: a request that is read, and a picture of the costliest kinds


def memory_bound(limits: Limits) -> int:
    """Bytes that all requests take at the most, besides keys and values: held ones, one read, and pictures decoded."""
    read = limits.max_body + SMALL_THREADS * LARGE_BYTES
    decoded = limits.max_pixels + SMALL_THREADS * LARGE_PIXELS
    return limits.max_held + _BYTES_OF_BYTE * read + _BYTES_OF_PIXEL * decoded


class Workers:
    """Runs functions in threads. Whoever stops waiting for one that has not begun cancels it."""

    def __init__(self) -> None:
        self._large = ThreadPoolExecutor(1, "large")
        self._small = ThreadPoolExecutor(SMALL_THREADS, "small")
        self._fetches = ThreadPoolExecutor(8, "fetch")

    async def run(self, large: bool, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``function`` gives."""
        return await self._run(self._large if large else self._small, lambda: function(*args, **kwargs))

    async def fetch(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``function``, which waits for a network, gives."""
        return await self._run(self._fetches, lambda: function(*args, **kwargs))

    async def _run(self, threads: ThreadPoolExecutor, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, function)

    def close(self) -> None:
        """Begin nothing any more."""
        for threads in (self._large, self._small, self._fetches):
            threads.shutdown(wait=False, cancel_futures=True)

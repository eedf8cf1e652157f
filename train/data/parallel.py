"""Work on many small items by all cores, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

from mobillama_v.backends.select import processors
from mobillama_v.errors import DataError

T = TypeVar("T")
R = TypeVar("R")
BATCH = 256  # items that a process gets at a time
_MIN_PARALLEL = 4 * BATCH  # fewer items are done before other processes have started


def cores(*, alone: bool = False) -> int:
    """Processes that may work at once: this program's cores, shared by the ranks on this machine or ``alone``."""
    available = processors()
    if alone:
        return available
    ranks = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1"  # torchrun's, DeepSpeed's
    return max(1, available // int(ranks))


def parallel_map(work: Callable[[T], R], items: Iterable[T], *, workers: int | None = None) -> Iterator[R]:
    """``map(work, items)`` over processes, in order, with few items waiting at any time.

    Few items are done in this process.

    Args:
        work: can be pickled.
        items: read as they are needed.
        workers: processes; None means :func:`cores`.

    Raises:
        DataError: a process was killed, by the system for want of memory, for example.
    """
    source = iter(items)
    count = cores() if workers is None else workers
    first = list(islice(source, _MIN_PARALLEL))
    source = chain(first, source)
    if count <= 1 or len(first) < _MIN_PARALLEL:
        yield from map(work, source)
        return
    batches = iter(lambda: list(islice(source, BATCH)), [])
    # Not forked: this process may have threads by now. What the others import is light.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_ignore_interrupts) as pool:
        waiting = deque(pool.submit(_each, work, batch) for batch in islice(batches, 3 * count))
        try:
            while waiting:
                yield from waiting.popleft().result()
                waiting.extend(pool.submit(_each, work, batch) for batch in islice(batches, 1))
        except BrokenProcessPool as error:
            raise DataError("a process that reads the data was killed; is there memory for fewer of them?") from error
        finally:
            for future in waiting:
                future.cancel()


def _ignore_interrupts() -> None:
    """Ctrl-C goes to every process of a terminal; the first one answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _each(work: Callable[[T], R], items: list[T]) -> list[R]:
    return [work(item) for item in items]

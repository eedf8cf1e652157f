"""Measure the peak memory of torch on a CPU, where torch itself counts none."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable


def peak_memory(work: Callable[[], object]) -> int:
    """Bytes at the fullest moment of ``work``, above what was held before it.

    They are those of torch's CPU allocator, as its profiler records every allocation: what
    ``torch.cuda.max_memory_allocated`` is on a GPU.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports its starts, and on a CPU that it finds no GPU
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    results = profiled.profiler
    assert results is not None and results.kineto_results is not None
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak

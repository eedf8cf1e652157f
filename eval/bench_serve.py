"""What the workers of ``mobillama-v bench run`` have in common, whatever they run; it imports no library.

Each line of a worker's standard input is a JSON request (``prompt``, ids, and ``new``, a number of tokens), and each
line of its standard output the answer; the first says that the model is loaded.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Start = Callable[[list[int], int], tuple[int, Callable[[int], int]]]
"""From a prompt's ids and room for as many new tokens: the likeliest token, and a function from a token to the next."""


def serve(start: Start, facts: dict[str, Any]) -> None:
    """Say ``facts``, and answer requests until they end."""
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = _measure(start, request["prompt"], request["new"])
        print(json.dumps(answer | {"peak_rss": peak_rss()}), flush=True)


def _measure(start: Start, ids: list[int], new: int) -> dict[str, Any]:
    """Seconds of a prompt and of all new tokens after the first, chosen greedily, and the tokens."""
    begin = time.perf_counter()
    token, step = start(ids, new)
    first = time.perf_counter()
    tokens = [token]
    for _ in range(new - 1):
        token = step(token)
        tokens.append(token)
    return {"prefill": first - begin, "decode": time.perf_counter() - first, "tokens": tokens}


def peak_rss() -> int:
    """The most bytes of memory that this process had; on Linux the usual call counts its parent's too."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

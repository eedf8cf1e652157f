"""The CPU engine against llama.cpp, in what ``mobillama-v bench run`` has measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from mobillama_v.eval.bench_llamacpp import SETTINGS

_RIVALS = {"native 4 bit": "q4_0", "native 8 bit": "q8_0"}


def versus(ways: dict[str, Any]) -> dict[str, Any]:
    """How many times as fast as llama.cpp each native way is, by length of the prompt, and the ratio of peak memory.

    llama.cpp is taken in its best setting, for each figure on its own: that of the least median. Speeds are compared
    turn by turn; a ratio is the median of the turns, with the least and the greatest.
    """
    found: dict[str, Any] = {}
    for mine, kind in _RIVALS.items():
        theirs = [name for name in ways if name in SETTINGS and SETTINGS[name].kind == kind]
        if mine not in ways or not theirs:
            continue
        prompts: dict[str, Any] = {}
        for length, seconds in ways[mine]["seconds"].items():
            prompts[length] = {
                what: _ratio(seconds[what], {name: ways[name]["seconds"][length][what] for name in theirs})
                for what in ("prefill", "decode")
            }
        least = min(theirs, key=lambda name: ways[name]["peak_rss_bytes"])
        memory = {"ratio": ways[mine]["peak_rss_bytes"] / ways[least]["peak_rss_bytes"], "setting": least}
        found[mine] = {"prompts": prompts, "peak_rss": memory}
    return found


def _ratio(mine: Sequence[float], theirs: dict[str, Sequence[float]]) -> dict[str, Any]:
    best = min(theirs, key=lambda name: statistics.median(theirs[name]))
    ratios = [a / b for a, b in zip(theirs[best], mine, strict=True)]
    return {"ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)], "setting": best}


def versus_lines(facts: dict[str, Any]) -> list[str]:
    """:func:`versus` as text."""
    lines = []
    for mine, found in facts.items():
        parts = []
        for length, each in found["prompts"].items():
            for what in ("prefill", "decode"):
                low, high = each[what]["range"]
                words = f"prefill of {length}" if what == "prefill" else f"decode after {length}"
                parts.append(f"{words} {each[what]['ratio']:.2f}x ({low:.2f}-{high:.2f})")
        parts.append(f"peak memory {found['peak_rss']['ratio']:.2f}x")
        lines.append(f"{mine} against llama.cpp at its best: {', '.join(parts)}.")
    return lines

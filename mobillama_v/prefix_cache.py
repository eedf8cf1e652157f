"""Prefix caching: what several prompts begin with in common is run once.

The engines of all backends share this page. Arrays are numpy's or torch's, as the engine computes.

Shapes: T positions of a prompt, D hidden.
"""

from __future__ import annotations

from typing import Any, NamedTuple

_MIN_SHARED = 16  # positions in common that are worth a copy
_MAX_TURNS = 3


class CachedPrompt(NamedTuple):
    """A prompt's embeddings [T,D], and the engine's sequence that begins with it, or will."""

    embeds: Any
    sequence: Any

    def common(self, embeds: Any) -> int:
        """How many positions another prompt shares with the start of this one; its last position never counts."""
        length = min(len(self.embeds), len(embeds) - 1)
        same = (self.embeds[:length] == embeds[:length]).all(-1)
        return int(same.cumprod(0).sum())


class PrefixCache:
    """The last ``size`` prompts that were run, with their keys and values. Any thread may use it.

    There is no lock, which a forked process might inherit locked: of two threads that add at once one may be forgotten.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._prompts: list[CachedPrompt] = []

    def add(self, prompts: list[CachedPrompt]) -> None:
        """Keep these, and drop older ones."""
        self._prompts = [*self._prompts, *prompts][-self.size :]

    def prompts(self) -> list[CachedPrompt]:
        """Those that are kept now."""
        return self._prompts


class PrefixPlan(NamedTuple):
    """What is left to run of a prompt: positions from ``start`` on, after a copy of ``source`` (None: no copy)."""

    prompt: CachedPrompt
    start: int
    source: CachedPrompt | None
    turn: int


def plan_prefixes(prompts: list[CachedPrompt], cached: list[CachedPrompt]) -> list[PrefixPlan]:
    """Let each prompt start after the longest prefix that it shares with a cached one or with one before it.

    Prompts of one ``turn`` run together, after the prompts of the turn before, whose prefixes they copy. There are at
    most three turns: the text that begins all prompts, the images, the questions.
    """
    plans: list[PrefixPlan] = []
    for prompt in prompts:
        start, source, turn = 0, None, 0
        known = [(each, 0) for each in cached]
        known += [(each.prompt, each.turn + 1) for each in plans if each.turn < _MAX_TURNS - 1]
        for each, after in known:
            common = each.common(prompt.embeds)
            if common >= max(_MIN_SHARED, start + 1):
                start, source, turn = common, each, after
        plans.append(PrefixPlan(prompt, start, source, turn))
    return plans

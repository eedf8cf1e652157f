"""What prompts begin with in common is run once: prefix caching.

Shapes: T positions of a prompt, D hidden.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from mobillama_v.engine.native import NativeSequence

_FEWEST = 16  # positions in common that are worth a copy
_ROUNDS = 3


class Prompt(NamedTuple):
    """A prompt: its embeddings [T,D], and the sequence that begins with it, or shall."""

    embeds: Tensor
    sequence: NativeSequence

    def common(self, embeds: Tensor) -> int:
        """Positions with which another prompt begins as this one does, its last one left to be run."""
        length = min(len(self.embeds), len(embeds) - 1)
        same = (self.embeds[:length] == embeds[:length]).all(-1)
        return int(same.long().cumprod(0).sum())


class Kept:
    """The last ``count`` prompts that were run, for any thread."""

    def __init__(self, count: int) -> None:
        self._prompts: deque[Prompt] = deque(maxlen=count)
        self._lock = threading.Lock()

    def add(self, prompts: list[Prompt]) -> None:
        """Keep these, and let older ones go."""
        with self._lock:
            self._prompts.extend(prompts)

    def all(self) -> list[Prompt]:
        """Those that are kept now."""
        with self._lock:
            return list(self._prompts)


def longest(embeds: Tensor, known: list[Prompt]) -> tuple[int, Prompt | None]:
    """The prompt among some that begins most as ``embeds`` [T,D] does, and how many positions; 0 and None for few."""
    length, source = 0, None
    for each in known:
        common = each.common(embeds)
        if common >= max(_FEWEST, length + 1):
            length, source = common, each
    return length, source


def rounds(prompts: list[Prompt]) -> list[list[int]]:
    """Which of a batch run together: each prompt after the one before it that it has most in common with.

    There are at most three rounds: what begins all prompts, the pictures, the questions.
    """
    turns: list[int] = []
    for i, each in enumerate(prompts):
        earlier = [j for j in range(i) if turns[j] < _ROUNDS - 1]
        _, source = longest(each.embeds, [prompts[j] for j in earlier])
        turns.append(0 if source is None else 1 + next(turns[j] for j in earlier if prompts[j] is source))
    return [[i for i, mine in enumerate(turns) if mine == turn] for turn in range(max(turns) + 1)]

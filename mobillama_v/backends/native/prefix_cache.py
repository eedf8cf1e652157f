"""What prompts begin with in common is run once: prefix caching.

Shapes: T positions of a prompt, D hidden.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from mobillama_v.backends.native.packed_format import Array

if TYPE_CHECKING:
    from mobillama_v.backends.native.runtime import NativeSequence

_FEWEST = 16  # positions in common that are worth a copy
_TURNS = 3


class Prompt(NamedTuple):
    """A prompt: its embeddings [T,D], and the sequence that begins with it, or shall."""

    embeds: Array
    sequence: NativeSequence

    def common(self, embeds: Array) -> int:
        """Positions with which another prompt begins as this one does, its last one left to be run."""
        length = min(len(self.embeds), len(embeds) - 1)
        same = (self.embeds[:length] == embeds[:length]).all(-1)
        return length if same.all() else int(same.argmin())


class PrefixCache:
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


class PrefixPlan(NamedTuple):
    """What is left to run of a prompt: from position ``start`` on, after ``source`` (None: it begins anew)."""

    prompt: Prompt
    start: int
    source: Prompt | None
    turn: int

    def begin(self) -> Array:
        """Take over what the source has run, which it must have; the embeddings that are left, [T-start,D].

        Raises:
            RuntimeError: as :meth:`~mobillama_v.backends.native.runtime.NativeSequence.copy`.
        """
        if self.source is not None:
            self.prompt.sequence.copy(self.source.sequence, self.start)
        return self.prompt.embeds[self.start :]


def parts(prompts: list[Prompt], kept: list[Prompt]) -> list[PrefixPlan]:
    """Each prompt of a batch after the one that begins most as it does: a kept one, or one before it in the batch.

    Those of one ``turn`` run together, and those of the batch that they follow in the turn before. There are at most
    three turns: what begins all prompts, the pictures, the questions.
    """
    found: list[PrefixPlan] = []
    for prompt in prompts:
        start, source, turn = 0, None, 0
        known = [(each, 0) for each in kept] + [
            (each.prompt, each.turn + 1) for each in found if each.turn < _TURNS - 1
        ]
        for each, after in known:
            common = each.common(prompt.embeds)
            if common >= max(_FEWEST, start + 1):
                start, source, turn = common, each, after
        found.append(PrefixPlan(prompt, start, source, turn))
    return found

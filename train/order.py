"""The order in which samples are learnt from: a function of the seed alone, so that resuming is exact."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

_BATCHES_SORTED_TOGETHER = 50


class TrainingOrder(Sampler[int]):
    """Indices of a whole training: one shuffled pass over the data after the other.

    With ``lengths`` (or other keys of likeness) each run of 50 batches is sorted by them and its batches shuffled
    again: a batch then needs little padding, and still long and short batches alternate.
    """

    def __init__(
        self, samples: int, *, total: int, batch_size: int, seed: int, lengths: np.ndarray | None = None
    ) -> None:
        self.samples, self.total, self.batch_size, self.seed, self.lengths = samples, total, batch_size, seed, lengths

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        passes = math.ceil(self.total / self.samples)
        order = np.concatenate([np.random.default_rng([self.seed, p]).permutation(self.samples) for p in range(passes)])
        order = order[: self.total]
        if self.lengths is not None:
            order = self._grouped(order, self.lengths)
        return iter(order.tolist())

    def _grouped(self, order: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(1,)))  # none of the passes' own
        out = []
        run = self.batch_size * _BATCHES_SORTED_TOGETHER
        for first in range(0, len(order), run):
            chunk = order[first : first + run]
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            whole = len(chunk) // self.batch_size
            batches = chunk[: whole * self.batch_size].reshape(whole, self.batch_size)
            out += [batches[rng.permutation(whole)].ravel(), chunk[whole * self.batch_size :]]
        return np.concatenate(out)

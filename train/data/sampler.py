"""The order in which samples are learned from: a function of the seed alone, so that resuming is exact."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from mobillama_v.errors import RecipeError

_BATCHES_SORTED_TOGETHER = 50


def shuffled(samples: int, *, total: int, seed: int) -> np.ndarray:
    """The first ``total`` indices [total] of one shuffled pass over the samples after the other."""
    passes = range(math.ceil(total / samples))
    return np.concatenate([np.random.default_rng([seed, p]).permutation(samples) for p in passes])[:total]


class TrainingSampler(Sampler[int]):
    """Indices of a whole training: one shuffled pass over the data after the other.

    With ``lengths`` (or other keys of sort_keys) each run of 50 batches is sorted by them and its batches shuffled
    again: a batch then needs little padding, and still long and short batches alternate.
    """

    def __init__(
        self, samples: int, *, total: int, batch_size: int, seed: int, lengths: np.ndarray | None = None
    ) -> None:
        self.samples, self.total, self.batch_size, self.seed, self.lengths = samples, total, batch_size, seed, lengths

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        order = shuffled(self.samples, total=self.total, seed=self.seed)
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


@dataclass(frozen=True)
class Packs:
    """The forward passes of a whole training, of samples that are packed: pass i learns from ``packs[i]``."""

    order: np.ndarray  # [samples] of all packs, one after the other
    offsets: np.ndarray  # [packs + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> list[int]:
        return self.order[self.offsets[index] : self.offsets[index + 1]].tolist()

    def most(self, counts: np.ndarray) -> int:
        """The largest sum over a pack of what is counted for each sample of the data."""
        return int(np.add.reduceat(counts[self.order], self.offsets[:-1]).max())


def pack(
    lengths: np.ndarray, *, tokens: int, seed: int, total: int, count: int | None = None, multiple: int = 1
) -> Packs:
    """Samples in shuffled order, as many neighbors in a pack as fit: what a batch is made of stays chance.

    Args:
        lengths: tokens of each sample of the data.
        tokens: of a pack, at most.
        seed: of the order.
        total: samples to pack, over all passes.
        count: how many packs are wanted; ``total`` is then not looked at.
        multiple: further samples follow until the packs are a multiple of this.

    Raises:
        RecipeError: a sample that is longer than a pack.
    """
    longest = int(lengths.max())
    if longest > tokens:
        raise RecipeError(
            f"train.pack_tokens is {tokens} and the longest sample has {longest} tokens; raise it, or lower "
            "data.max_length."
        )
    if count is None:
        order = shuffled(len(lengths), total=total, seed=seed)
        offsets = _fill(lengths[order], tokens)
        if (len(offsets) - 1) % multiple == 0:
            return Packs(order, offsets)
        count = math.ceil((len(offsets) - 1) / multiple) * multiple
    passes = math.ceil(count * tokens / int(lengths.sum())) + 1  # one more, so that the last pack is full too
    order = shuffled(len(lengths), total=passes * len(lengths), seed=seed)
    offsets = _fill(lengths[order], tokens)[: count + 1]
    return Packs(order[: offsets[-1]], offsets)


def _fill(lengths: np.ndarray, tokens: int) -> np.ndarray:
    """Where packs of neighboring samples begin, and the last one ends."""
    ends = np.cumsum(lengths)
    offsets = [0]
    while offsets[-1] < len(lengths):
        before = ends[offsets[-1] - 1] if offsets[-1] else 0
        offsets.append(int(np.searchsorted(ends, before + tokens, side="right")))
    return np.array(offsets, np.int64)

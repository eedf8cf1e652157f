"""Records as tokens, ready to be learned from.

All samples are tokenized before training starts, by all cores, and lie in three flat arrays, so that a token costs five
bytes and so that problems of the data are reported before the first step.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mobillama_v.conversation import EMPTY
from mobillama_v.errors import DataError
from mobillama_v.images import ImageTransform, load_image
from mobillama_v.prompt import IGNORE_INDEX
from mobillama_v.train.data.encoding import IMAGE, SUPERVISED, Encoding, labels_of
from mobillama_v.train.data.features import StoredFeatures
from mobillama_v.train.data.preprocess import Outcome, Problem, count_notes, partition, preprocess
from mobillama_v.train.data.sampler import Packs
from mobillama_v.train.recipe import DataFile

_SHOWN = 20  # problems in a text; a list of all of them goes to a file


@dataclass(frozen=True)
class Samples:
    """Tokenized samples; sample i is the span ``offsets[i]:offsets[i+1]`` of ``ids`` and ``flags``."""

    ids: np.ndarray  # [all tokens] int32
    flags: np.ndarray  # [all tokens] uint8
    offsets: np.ndarray  # [samples + 1] int64
    images: list[tuple[str, ...]]
    records: list[tuple[str, str]]
    """File and id of each sample's record."""
    shortened: int
    """How many samples lost their end to fit ``max_length``."""
    notes: dict[str, int]
    """What was changed in records while they were read, and in how many."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample, images included."""
        return np.diff(self.offsets)

    @property
    def sort_keys(self) -> np.ndarray:
        """Keys whose order puts samples with images together, those without, and like lengths in each."""
        return self.lengths + (np.array([bool(paths) for paths in self.images], np.int64) << 32)

    @property
    def supervised(self) -> int:
        """Tokens that are learned, over all samples."""
        return int(np.count_nonzero(self.flags & SUPERVISED))

    def name(self, index: int) -> dict[str, object]:
        """File, id and images of the record that a sample is made of."""
        source, record = self.records[index]
        return {"source": source, "record": record, "images": list(self.images[index])}

    def image_paths(self) -> list[str]:
        """Every image once, in order of first use."""
        return list(dict.fromkeys(path for paths in self.images for path in paths))

    def digest(self) -> str:
        """A fingerprint of tokens, labels and image paths, to tell whether a training goes on with the same data."""
        state = hashlib.sha256()
        for array in (self.ids, self.flags, self.offsets):
            state.update(np.ascontiguousarray(array).data)
        state.update(repr(self.images).encode())
        return state.hexdigest()


class BadRecordsError(DataError):
    """Records that cannot be learned from, in a training that may not leave any out."""

    def __init__(self, problems: Sequence[Problem], total: int) -> None:
        super().__init__(
            f"{len(problems):,} of {total:,} records cannot be learned from ({count_kinds(problems)}); the first: "
            f"{problems[0].reason} `mobillama-v data check` lists and removes them, data.skip_bad=true trains without "
            "them."
        )
        self.problems = list(problems)


def count_kinds(problems: Iterable[Problem]) -> str:
    """How many problems of each kind, most first."""
    counts = Counter(problem.kind for problem in problems)
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())


def list_problems(problems: Sequence[Problem], where: Path) -> str:
    """The first problems, a line each, and where all of them are listed."""
    lines = [f"bad record  {problem.reason}" for problem in problems[:_SHOWN]]
    return "\n".join([*lines, f"all {len(problems):,} bad records: {where}"])


def load_samples(
    files: Sequence[DataFile],
    encoding: Encoding,
    *,
    images: Callable[[list[str]], dict[str, tuple[str, str]]],
    skip_bad: bool = False,
    skip_empty: bool = False,
    keep_duplicates: bool = False,
    workers: int | None = None,
) -> tuple[Samples, list[Problem]]:
    """The records of all files as samples, one after the other; those of a file with ``repeat`` n come n times.

    A record that is too long loses its end.

    Args:
        files: what to read.
        encoding: how records become tokens.
        images: given every path once, returns those that cannot be used with kind and reason.
        skip_bad: leave out what cannot be learned from, instead of refusing it.
        skip_empty: the same for records with an empty answer alone.
        keep_duplicates: exact duplicates are no problem.
        workers: processes; None means all cores.

    Returns:
        The samples, and the problems of what was left out.

    Raises:
        BadRecordsError: records that cannot be learned from and are not to be left out.
        DataError: a file that cannot be read, or no record is left.
    """
    repeats = {file.path: file.repeat for file in files}
    paths = [Path(file.path) for file in files]
    outcomes = preprocess(paths, encoding, workers=workers, keep_duplicates=keep_duplicates)
    good, problems, _ = partition(outcomes, images)
    refused = [] if skip_bad else [each for each in problems if not (skip_empty and each.kind == EMPTY)]
    if refused:
        raise BadRecordsError(refused, len(good) + len(problems))
    if not good:
        raise DataError("the data files hold no record that can be learned from; check data.json of the recipe.")
    by_file: dict[str, list[Outcome]] = {}
    for outcome in good:
        by_file.setdefault(outcome.source, []).append(outcome)
    chosen = [each for path, found in by_file.items() for each in found * repeats[path]]
    return _samples(chosen, count_notes(good)), problems


def _samples(outcomes: Sequence[Outcome], notes: dict[str, int]) -> Samples:
    tokens = [outcome.tokens for outcome in outcomes if outcome.tokens is not None]
    offsets = np.cumsum([0, *(len(each.flags) for each in tokens)], dtype=np.int64)
    return Samples(
        ids=np.concatenate([each.ids for each in tokens]),
        flags=np.concatenate([each.flags for each in tokens]),
        offsets=offsets,
        images=[outcome.images[: each.images] for outcome, each in zip(outcomes, tokens, strict=True)],
        records=[(outcome.source, outcome.record) for outcome in outcomes],
        shortened=sum(each.shortened for each in tokens),
        notes=notes,
    )


class TrainingSet(Dataset[dict[str, Any]]):
    """Samples with their pictures: decoded when asked for, or the tower's stored outputs.

    An item has ``input_ids`` [T] int64, ``labels`` [T] int64 (see :func:`labels_of`), ``image_mask`` [T] bool, and
    where the sample has images ``pixel_values`` [n,3,S,S] float32 or ``image_features`` [n,E+P,Dv] float16.
    """

    def __init__(
        self, samples: Samples, *, image_root: Path, transform: ImageTransform, features: StoredFeatures | None = None
    ) -> None:
        self.samples, self.image_root, self.transform, self.features = samples, image_root, transform, features

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample.

        Raises:
            ImageError: an image that cannot be decoded.
        """
        span = slice(self.samples.offsets[index], self.samples.offsets[index + 1])
        ids, flags = self.samples.ids[span], self.samples.flags[span]
        item: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids).long(),
            "labels": torch.from_numpy(labels_of(ids, flags)),
            "image_mask": torch.from_numpy(flags & IMAGE) != 0,
        }
        paths = self.samples.images[index]
        if paths and self.features is not None:
            item["image_features"] = torch.from_numpy(self.features.read(paths))
        elif paths:
            item["pixel_values"] = torch.from_numpy(np.stack([self._pixels(path) for path in paths]))
        return item

    def blank(self, slots: int) -> dict[str, Any] | None:
        """An item of one image in ``slots`` tokens, from which nothing is learned; None where no sample has images."""
        if not any(self.samples.images):
            return None
        item: dict[str, Any] = {
            "input_ids": torch.zeros(slots, dtype=torch.long),
            "labels": torch.full((slots,), IGNORE_INDEX),
            "image_mask": torch.ones(slots, dtype=torch.bool),
        }
        if self.features is not None:
            item["image_features"] = torch.zeros(1, *self.features.shape, dtype=torch.float16)
        else:
            item["pixel_values"] = torch.zeros(1, 3, self.transform.size, self.transform.size)
        return item

    def _pixels(self, path: str) -> np.ndarray:
        return self.transform(load_image(self.image_root / path, target=self.transform.size))


class PackedSet(Dataset[list[dict[str, Any]]]):
    """A training's packs in their order: an item is the list of those of a pack's samples."""

    def __init__(self, samples: TrainingSet, packs: Packs) -> None:
        self.samples, self.packs = samples, packs

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """The samples of one pack.

        Raises:
            ImageError: an image that cannot be decoded.
        """
        return [self.samples[sample] for sample in self.packs[index]]

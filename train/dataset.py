"""Records as tokens, ready to be learnt from.

All samples are tokenised before training starts and lie in three flat arrays, so that a record costs the bytes of its
tokens and no Python object, and so that whatever is wrong with the data is said before the first step.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from mobillama_v.errors import DataError, ImageError, PromptError
from mobillama_v.images import ImageTransform, load_image
from mobillama_v.prompts import IGNORE_INDEX, Encoded, Tokenizer, encode
from mobillama_v.train.features import FeatureCache
from mobillama_v.train.recipe import DataFile
from mobillama_v.train.records import Record, read_records

_SUPERVISED, _IMAGE = 1, 2  # bits of a token's flags
_REMEMBERED = 1 << 16  # segments whose ids are kept: system sentences, common questions and answers


@dataclass(frozen=True)
class Samples:
    """Tokenised samples; sample i is the span ``offsets[i]:offsets[i+1]`` of ``ids`` and ``flags``."""

    ids: np.ndarray  # [all tokens] int32
    flags: np.ndarray  # [all tokens] uint8
    offsets: np.ndarray  # [samples + 1] int64
    images: list[tuple[str, ...]]
    shortened: int
    """How many samples lost their last turns to fit ``max_length``."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample, images included."""
        return np.diff(self.offsets)

    @property
    def supervised(self) -> int:
        """Tokens that are learnt, over all samples."""
        return int(np.count_nonzero(self.flags & _SUPERVISED))

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


class _Remembering:
    """A tokenizer that keeps the ids of what it has lately encoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.bos_id, self.eos_id = tokenizer.bos_id, tokenizer.eos_id
        self.encode: Callable[[str], list[int]] = functools.lru_cache(_REMEMBERED)(tokenizer.encode)


def read_files(files: Iterable[DataFile]) -> list[Record]:
    """The records of all files, one after the other; those of a file with ``repeat`` n come n times.

    Raises:
        DataError: a file or record is not what the format says, or there are no records at all.
    """
    records: list[Record] = []
    for file in files:
        records += list(read_records(Path(file.path))) * file.repeat
    if not records:
        raise DataError("the data files hold no records; check data.json of the recipe.")
    return records


def tokenize(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    *,
    template: Literal["plain", "v1"],
    tokens_per_image: int,
    max_length: int,
) -> Samples:
    """Encode records; one that is too long loses its last turns.

    Raises:
        DataError: records of which even the first turn is too long, or that cannot be encoded; the first is named.
    """
    remembering = _Remembering(tokenizer)
    ids: list[np.ndarray] = []
    flags: list[np.ndarray] = []
    images: list[tuple[str, ...]] = []
    too_long: list[str] = []
    shortened = 0
    encode_one = functools.partial(encode, tokenizer=remembering, template=template, tokens_per_image=tokens_per_image)
    for record in records:
        kept = _fit(record, encode_one, max_length)
        if kept is None:
            too_long.append(record.where)
            continue
        encoded, used = kept
        shortened += used < len(record.messages)
        ids.append(np.asarray(encoded.input_ids, np.int32))
        supervised = np.asarray(encoded.labels) != IGNORE_INDEX
        flags.append(supervised * np.uint8(_SUPERVISED) + np.asarray(encoded.image_mask) * np.uint8(_IMAGE))
        images.append(record.images[: sum(message.images for message in record.messages[:used])])
    if too_long:
        raise DataError(
            f"{len(too_long)} records have no answer within data.max_length={max_length} tokens, the first is "
            f"{too_long[0]}; shorten or remove them, or raise data.max_length."
        )
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return Samples(np.concatenate(ids), np.concatenate(flags), offsets, images, shortened)


def _fit(record: Record, encode_one: Callable[..., Encoded], max_length: int) -> tuple[Encoded, int] | None:
    """The longest run of whole leading exchanges that fits, and how many messages it has; None when none fits."""
    for used in range(len(record.messages), 1, -2):
        try:
            encoded = encode_one(list(record.messages[:used]))
        except PromptError as error:
            raise DataError(f"{record.where}: {error}") from error
        if len(encoded.input_ids) <= max_length:
            return encoded, used
    return None


class TrainingSet(Dataset[dict[str, Any]]):
    """Samples with their pictures: decoded when asked for, or the tower's cached outputs.

    An item has ``input_ids`` [T] int64, ``labels`` [T] int64 (-100 where not supervised), ``image_mask`` [T] bool, and
    where the sample has images ``pixel_values`` [n,3,S,S] float32 or ``image_features`` [n,E+P,Dv] float16.
    """

    def __init__(
        self, samples: Samples, *, image_root: Path, transform: ImageTransform, features: FeatureCache | None = None
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
        flags = torch.from_numpy(self.samples.flags[span])
        input_ids = torch.from_numpy(self.samples.ids[span]).long()
        item: dict[str, Any] = {
            "input_ids": input_ids,
            "labels": input_ids.masked_fill((flags & _SUPERVISED) == 0, IGNORE_INDEX),
            "image_mask": (flags & _IMAGE) != 0,
        }
        paths = self.samples.images[index]
        if paths and self.features is not None:
            item["image_features"] = torch.from_numpy(self.features.read(paths))
        elif paths:
            item["pixel_values"] = torch.from_numpy(np.stack([self._pixels(path) for path in paths]))
        return item

    def _pixels(self, path: str) -> np.ndarray:
        return self.transform(load_image(self.image_root / path, target=self.transform.size))


def check_images_exist(paths: Iterable[str], image_root: Path) -> None:
    """Refuse missing pictures before training, not when their batch comes.

    Raises:
        ImageError: how many are missing, and the first.
    """
    missing = [path for path in paths if not (image_root / path).is_file()]
    if missing:
        raise ImageError(
            f"{len(missing)} images are missing, the first is {image_root / missing[0]}; check data.image_root or "
            "remove their records."
        )

"""A simulated mix: records whose lengths are like those of the 665k conversations that LLaVA-1.5 is tuned on.

What is true of it: the sources and how many records each has (665,298 in all, 40,688 of them text alone), the 576
tokens of an image, and the cut at 2,048 tokens (arXiv 2310.03744, appendix). What is guessed: how long the texts of a
source are and how much of them is learnt; no figures are published, so these are round numbers for what its records
look like under the ``v1`` template (a system sentence, questions and answers). Words and pictures are noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mobillama_v.prompt import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor

VISUAL, CONTEXT = 576, 2048  # tokens of an image, and of a record at most


class Source(NamedTuple):
    """Records of one kind: thousands of them, median and spread (of the logarithm) of text tokens, share learnt."""

    name: str
    thousands: int
    text: int
    spread: float
    learnt: float
    image: bool = True


PROFILE = (
    Source("LLaVA-Instruct: conversations, descriptions, reasoning", 158, 300, 0.5, 0.6),
    Source("VQAv2, GQA, OKVQA: several short answers", 164, 210, 0.45, 0.15),
    Source("OCR-VQA: several short answers", 80, 150, 0.3, 0.25),
    Source("A-OKVQA: one letter", 66, 120, 0.3, 0.05),
    Source("TextCaps: one sentence", 22, 90, 0.2, 0.2),
    Source("RefCOCO, Visual Genome: boxes and regions", 134, 340, 0.4, 0.45),
    Source("ShareGPT: text alone", 41, 1100, 0.8, 0.75, image=False),
)


@dataclass(frozen=True)
class Mix:
    """Records by their lengths [records]: all tokens, those learnt, and whether there is an image."""

    lengths: np.ndarray
    learnt: np.ndarray
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)


def draw(records: int, *, per_image: int, seed: int) -> Mix:
    """Records of the profile, every length times ``per_image`` / 576: with fewer visual tokens there is less of all."""
    rng = np.random.default_rng(seed)
    shares = np.array([source.thousands for source in PROFILE], float)
    kinds = rng.choice(len(PROFILE), size=records, p=shares / shares.sum())
    column = {name: np.array([getattr(source, name) for source in PROFILE])[kinds] for name in Source._fields[2:]}
    text = column["text"] * np.exp(column["spread"] * rng.standard_normal(records))
    whole = np.minimum(text + VISUAL * column["image"], CONTEXT) * per_image / VISUAL
    images = column["image"].astype(bool)
    lengths = np.maximum(np.round(whole).astype(np.int64), 4 + per_image * images)
    words = lengths - per_image * images
    return Mix(lengths, np.clip(np.round(words * column["learnt"]).astype(np.int64), 1, words - 2), images)


def items(mix: Mix, *, per_image: int, vocabulary: int, features: Tensor, seed: int) -> list[dict[str, Any]]:
    """The records as a :class:`~mobillama_v.train.data.dataset.TrainingSet` would give them; every image is
    ``features``."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    made: list[dict[str, Any]] = []
    for length, learnt, image in zip(mix.lengths.tolist(), mix.learnt.tolist(), mix.images.tolist(), strict=True):
        ids = torch.randint(3, vocabulary, (length,), generator=generator)
        slots = torch.zeros(length, dtype=torch.bool)
        slots[1 : 1 + per_image * image] = True
        places = torch.arange(length)
        item = {
            "input_ids": ids,
            "labels": ids.masked_fill(places < length - learnt, IGNORE_INDEX),
            "image_mask": slots,
        }
        made.append(item | ({"image_features": features} if image else {}))
    return made


def random_batches(mix: Mix, size: int, *, seed: int) -> list[list[int]]:
    """Records as they come."""
    order = np.random.default_rng(seed).permutation(len(mix)).tolist()
    return [order[first : first + size] for first in range(0, len(order), size)]


def grouped_batches(mix: Mix, size: int) -> list[list[int]]:
    """As LLaVA groups the records of a step for its devices: images apart from text, and then by length.

    The longest first, each record goes to the batch that has the fewest tokens so far: devices then have as much to do,
    though a batch holds long and short ones.
    """
    batches = []
    for image in (True, False):
        chosen = np.flatnonzero(mix.images == image)
        open_batches: list[list[int]] = [[] for _ in range(-(-len(chosen) // size))]
        for record in sorted(chosen.tolist(), key=lambda each: -int(mix.lengths[each])):
            room = [batch for batch in open_batches if len(batch) < size]
            min(room, key=lambda batch: int(mix.lengths[batch].sum())).append(record)
        batches += open_batches
    return batches

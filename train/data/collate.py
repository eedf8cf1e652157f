"""Samples to a batch: padded on the right, with the attention mask made from lengths; or packed into one row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mobillama_v.prompt import IGNORE_INDEX

_IMAGES = ("pixel_values", "image_features")


def _with_image(items: list[dict[str, Any]], blank: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The items, and ``blank`` if there is one and none of them has an image."""
    return items if blank is None or any(name in item for item in items for name in _IMAGES) else [*items, blank]


def _images(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """All images in order, by the one name that they have."""
    found = {name: [item[name] for item in items if name in item] for name in _IMAGES}
    return {name: torch.cat(images) for name, images in found.items() if images}


class Collator:
    """Makes batches of B samples, T the longest of them and N all their images in order.

    A batch has ``input_ids``, ``labels`` and ``attention_mask`` [B,T] int64; where there are images also ``image_mask``
    [B,T] bool and ``pixel_values`` [N,3,S,S] or ``image_features`` [N,E+P,Dv].
    """

    def __init__(self, pad_id: int, blank: dict[str, Any] | None = None) -> None:
        """``blank``, an item with an image and nothing supervised, is added to batches that have no image."""
        self.pad_id, self.blank = pad_id, blank

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate the items of a :class:`~mobillama_v.train.data.dataset.TrainingSet`."""
        items = _with_image(items, self.blank)
        lengths = torch.tensor([len(item["input_ids"]) for item in items])
        batch = {
            "input_ids": self._pad(items, "input_ids", self.pad_id),
            "labels": self._pad(items, "labels", IGNORE_INDEX),
            "attention_mask": (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long(),
        }
        if images := _images(items):
            batch |= images | {"image_mask": self._pad(items, "image_mask", False)}
        return batch

    @staticmethod
    def _pad(items: list[dict[str, Any]], name: str, value: int | bool) -> Tensor:
        return pad_sequence([item[name] for item in items], batch_first=True, padding_value=value)


class PackCollator:
    """Lays the T tokens of a pack's samples out in one row, one sample after the other.

    A batch has ``input_ids`` and ``labels`` [1,T] int64 and ``sample_lengths``, a tuple; where there are images also
    ``image_mask`` [1,T] bool and ``pixel_values`` [N,3,S,S] or ``image_features`` [N,E+P,Dv].
    """

    def __init__(self, blank: dict[str, Any] | None = None) -> None:
        """``blank`` is that of a :class:`Collator`."""
        self.blank = blank

    def __call__(self, packs: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """Collate the items of a :class:`~mobillama_v.train.data.dataset.PackedSet`."""
        items = _with_image([item for pack in packs for item in pack], self.blank)
        batch = {
            "input_ids": torch.cat([item["input_ids"] for item in items])[None],
            "labels": torch.cat([item["labels"] for item in items])[None],
            "sample_lengths": tuple(len(item["input_ids"]) for item in items),
        }
        if images := _images(items):
            batch |= images | {"image_mask": torch.cat([item["image_mask"] for item in items])[None]}
        return batch

"""Samples to a batch: padded on the right, with the attention mask made from lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mobillama_v.prompts import IGNORE_INDEX

_IMAGES = ("pixel_values", "image_features")


class Collator:
    """Makes batches of B samples, T the longest of them and N all their images in order.

    A batch has ``input_ids``, ``labels`` and ``attention_mask`` [B,T] int64; where there are images also ``image_mask``
    [B,T] bool and ``pixel_values`` [N,3,S,S] or ``image_features`` [N,E+P,Dv].
    """

    def __init__(self, pad_id: int, blank: dict[str, Any] | None = None) -> None:
        """``blank``, an item with an image and nothing supervised, is added to batches that have no image."""
        self.pad_id, self.blank = pad_id, blank

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate the items of a :class:`~mobillama_v.train.dataset.TrainingSet`."""
        if self.blank is not None and not any(name in item for item in items for name in _IMAGES):
            items = [*items, self.blank]
        lengths = torch.tensor([len(item["input_ids"]) for item in items])
        batch = {
            "input_ids": self._pad(items, "input_ids", self.pad_id),
            "labels": self._pad(items, "labels", IGNORE_INDEX),
            "attention_mask": (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long(),
        }
        for name in _IMAGES:
            found = [item[name] for item in items if name in item]
            if found:
                batch[name] = torch.cat(found)
                batch["image_mask"] = self._pad(items, "image_mask", False)
        return batch

    @staticmethod
    def _pad(items: list[dict[str, Any]], name: str, value: int | bool) -> Tensor:
        return pad_sequence([item[name] for item in items], batch_first=True, padding_value=value)

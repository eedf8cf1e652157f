"""Encoded pictures are kept for their owner, a bounded number and time."""

from __future__ import annotations

import torch

from mobillama_v.demo.image_cache import ImageCache
from mobillama_v.reply import EncodedImage

ONE, TWO, THREE = (EncodedImage(torch.full((1, 1), float(n)), 0.1) for n in range(3))


def test_kept_for_the_owner_only() -> None:
    cache = ImageCache()
    cache.put("a", "x", ONE)
    assert cache.get("a", "x") is ONE and cache.get("b", "x") is None and cache.get("a", "y") is None
    cache.put("b", "x", TWO)
    cache.forget("a")
    assert cache.get("a", "x") is None and cache.get("b", "x") is TWO


def test_the_one_used_longest_ago_goes_first() -> None:
    cache = ImageCache(size=2)
    cache.put("a", 1, ONE)
    cache.put("a", 2, TWO)
    assert cache.get("a", 1) is ONE
    cache.put("a", 3, THREE)
    assert cache.get("a", 2) is None and cache.get("a", 1) is ONE and len(cache) == 2


def test_time_passes() -> None:
    cache = ImageCache(seconds=-1)
    cache.put("a", 1, ONE)
    assert cache.get("a", 1) is None

"""Which questions are asked together: whole images in a window, and in a batch those on one image or of like length.

Batches depend on the questions alone, neither on what is answered already nor on how many processes share the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mobillama_v.eval.benchmarks.base import Example


def windows(examples: Sequence[Example], *, questions: int, images: int) -> Iterator[list[Example]]:
    """Groups of examples between which no image is shared, but for examples that combine several images differently.

    Examples with the same images stay together, and come in the order of the first of them. A window has at most
    ``questions`` examples and ``images`` images, unless one image has more questions than that.
    """
    by_images: dict[tuple[Path, ...], list[Example]] = {}
    for example in examples:
        by_images.setdefault(example.images, []).append(example)
    window: list[Example] = []
    held = 0
    for paths, group in by_images.items():
        for piece in [group] if paths else [[each] for each in group]:
            if window and (len(window) + len(piece) > questions or held + len(paths) > images):
                yield window
                window, held = [], 0
            window += piece
            held += len(paths)
    if window:
        yield window


def batches(examples: Sequence[Example], lengths: Sequence[int], *, size: int) -> Iterator[list[Example]]:
    """Up to ``size`` examples at a time, given the lengths of their prompts in tokens.

    Those with the same images come together, for an engine that runs what they share once; and those of like length,
    the longest first, for one that pads.
    """
    longest: dict[object, int] = {}
    for example, length in zip(examples, lengths, strict=True):
        key = example.images or example.id
        longest[key] = max(length, longest.get(key, 0))
    place = {key: i for i, key in enumerate(sorted(longest, key=lambda each: -longest[each]))}
    ordered = sorted(examples, key=lambda example: place[example.images or example.id])
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]

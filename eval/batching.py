"""Which questions are asked together: whole images in a window, and in a batch questions of like length or one image.

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


def batches(lengths: Sequence[int], *, size: int, roomy: int, by_length: bool = True) -> Iterator[list[int]]:
    """Indices of prompts, grouped by length [tokens], the longest first, or as they come.

    A prompt longer than ``roomy`` is alone: it leaves less room for answers in the context than others may need, and a
    batch has the room of its longest prompt.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i] if by_length else 0, i))
    yield from ([i] for i in order if lengths[i] > roomy)
    rest = [i for i in order if lengths[i] <= roomy]
    for start in range(0, len(rest), size):
        yield rest[start : start + size]

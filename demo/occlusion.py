"""Which parts of a picture an answer depends on: how much less likely it becomes when a part is covered.

That is occlusion (Zeiler and Fergus, arXiv 1311.2901, section 4.2), on a grid of pixels. It asks the whole model, where
attention weights only tell what was read and not whether it mattered (arXiv 1902.10186).

Shapes: R pictures covered in different places, C cells a side, S image side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from mobillama_v.assistant import Assistant
from mobillama_v.generate import Array
from mobillama_v.prompt import Message
from mobillama_v.reply import EncodedImage

CELLS = 7
_SHOWN = 448  # pixels a side of the rendered map


def importance(
    model: Assistant, messages: Sequence[Message], images: Sequence[EncodedImage], square: Image.Image, answer: str
) -> Iterator[Array]:
    """How many nats each cell of the last picture adds to the log-likelihood of ``answer``.

    Args:
        model: what answered.
        messages: the conversation up to the question.
        images: its pictures.
        square: the last of them as the model sees it, [S,S] pixels.
        answer: the text.

    Yields:
        The map [C,C] so far, once a row of cells; the last one is whole.
    """

    def log_likelihood(last: Sequence[EncodedImage]) -> Array:
        """Of the answer and its end, [R], for each of R last pictures."""
        return model.score([([*images[:-1], each], messages) for each in last], answer).log_probs.sum(-1)

    whole, words = log_likelihood(images[-1:]), images[-1].words
    found = np.zeros((CELLS, CELLS))
    for row in range(CELLS):
        found[row] = whole - log_likelihood([model.encode_image(cover(square, row, c), words) for c in range(CELLS)])
        yield found


def cover(square: Image.Image, row: int, column: int) -> Image.Image:
    """The picture with one cell in its mean color."""
    side = square.width
    box = tuple(round(edge * side / CELLS) for edge in (column, row, column + 1, row + 1))
    mean = np.asarray(square, dtype=np.float32).mean((0, 1)).round().astype(int)
    covered = square.copy()
    covered.paste((int(mean[0]), int(mean[1]), int(mean[2])), (box[0], box[1], box[2], box[3]))
    return covered


def render(square: Image.Image, found: Array) -> Image.Image:
    """The picture, lit where the answer depends on it and dark elsewhere."""
    positive = found.clip(min=0)
    light = (255 * positive / positive.max().clip(min=1e-6)).round().astype(np.uint8)
    side = (_SHOWN, _SHOWN)
    mask = Image.fromarray(light).resize(side, Image.Resampling.BICUBIC)
    bright = square.resize(side, Image.Resampling.BICUBIC)
    return Image.composite(bright, bright.point(lambda value: value // 5), mask)

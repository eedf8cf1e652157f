"""Structured visual tokens: what the hybrid tower detects, in the language model's own words.

A small decoder takes very long to find out how to look at feature vectors, but knows at once what to do with words. So
the tower names what it detects, in vectors that start from the decoder's own embeddings (a concept bottleneck, Koh et
al., arXiv 2007.04612), and puts them before its patch features, as YOLOS puts detection tokens beside the patches (Fang
et al., arXiv 2106.00666):

- of a **photograph**: how sure the stem's classifier is, the names of its two likeliest classes, and their kind: ConSE,
  which embeds an image by its class names (Norouzi et al., arXiv 1312.5650); and the words that people would likeliest
  use in a description of it, the surest first: attributes (Wu et al., arXiv 1506.01144);
- of a **drawing**: the background's color; every shape with size, color, name and position; and every line of text,
  letter by letter. Shapes and letters are the peaks of heat maps (Objects as Points, Zhou et al., arXiv 1904.07850).

Attributes are named as the tensors in weight files: ``things`` are shapes, ``lines`` text, ``places`` positions.

Shapes: N images, G grid side, P = G*G patches, D width, L labels of a cell, C = 2G cells along a side (4 in a patch).
Positions are measured in cells, from 0 to C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mobillama_v.model.vision.lite0 import CLASSES, FINE, GRID, MEDIUM
from mobillama_v.model.vision.parts import Conv, LayerNorm, Linear, Part, parameter

WIDTH = 256
"""Of every token."""
CELLS = 2 * GRID
"""Cells along a side of the picture."""

RANKS, SLOTS = 2, 4
"""How many of the likeliest classes are named, and how many tokens a name has."""
KINDS, KIND_SLOTS = 76, 2
"""Kinds of classes, and how many tokens the name of one has."""
SHAPE_SLOTS = 6
"""One token a shape: the sum of the words of its size, color, name and position."""
LINES, LETTERS = 2, 7
"""Lines of text: a token a letter, then one of color and position."""
WORDS, WORD_SLOTS = 860, LINES * (LETTERS + 1)
"""Words that are looked for in photographs, and how many tokens are theirs: those of a drawing's lines of text."""
PREFIX_TOKENS = 2 + 1 + RANKS * SLOTS + KIND_SLOTS + SHAPE_SLOTS + LINES * (LETTERS + 1)
"""All structured tokens, which stand before the patches."""

PARTS = 4
SHAPES, COLORS, PHOTO = 10, 12, 73
LABELS = 74
"""Labels of a cell: 10 shapes and text, 12 colors, center, large, 12 background colors, 36 characters, photograph."""
COLOR_LABELS, BACKGROUND_LABELS = slice(11, 23), slice(25, 37)
CHARACTERS = 62
"""A to Z, a to z, 0 to 9."""
SHAPE_CLASSES = (3, COLORS, SHAPES)
"""Logits of a shape: its size (neither, small, large), color, name."""
LETTER_CHANNELS = 64
"""Of the convolutions that find letters."""
FEATURE_SHARE = 0.5
"""Scale of the standardized features beside the words."""

SURE, UNSURE = 0.5, 0.15
"""Probabilities from which a class is "sure" and "perhaps"."""
STEEP, STEEPER = 40.0, 120.0
"""Of the soft steps at those probabilities, and at the thirds of a picture's side."""
FOUND = 0.3
"""Heat around a peak from which something is there."""
APART = 1.75
"""Cells between two letters' middles, one above the other, from which they are of two lines."""

_TINY = 1e-12
_BEYOND = 2.0 * CELLS
"""Further than any position."""
_OFFSETS = [[float(i), float(j)] for i in (-1, 0, 1) for j in (-1, 0, 1)]


class LabelTokens(Part):
    """The patch part in words: what each cell shows, as label probabilities x learned vectors, and where it is."""

    def __init__(self) -> None:
        self.norm = LayerNorm(WIDTH)
        self.labels = Linear(WIDTH, PARTS * LABELS)
        self.table = parameter(PARTS * LABELS, WIDTH)
        self.place = parameter(1, GRID * GRID, WIDTH)

    def forward(self, x: Any) -> tuple[Any, Any, Any]:
        """Map the last block's output [N,P,D] to the patch part [N,P,D], standardized features [N,P,D] and label
        probabilities [N,P,4*L]."""
        features = self.norm(x)
        labels = self.ops.sigmoid(self.labels(features))
        return FEATURE_SHARE * features + labels @ self.table + self.place, features, labels


class ClassTokens(Part):
    """The likeliest classes in words. ``table`` [1000,SLOTS,D] holds their names; unused slots of a name are zero."""

    def __init__(self) -> None:
        self.table = parameter(CLASSES, SLOTS, WIDTH)
        self.how = parameter(3, WIDTH)
        self.kinds = parameter(KINDS, KIND_SLOTS, WIDTH)
        self.kind_of = parameter(CLASSES, KINDS, trained=False)

    def forward(self, probabilities: Any) -> Any:
        """Map class probabilities [N,1000] to [N,1+RANKS*SLOTS+KIND_SLOTS,D]: how sure, names, kind."""
        ops = self.ops
        top, classes = ops.topk(probabilities, RANKS)
        sure, unsure = (ops.sigmoid(STEEP * (top[:, 0] - bound)) for bound in (SURE, UNSURE))
        how = ops.stack((sure, (1 - sure) * unsure, (1 - sure) * (1 - unsure))) @ self.how
        mass = probabilities @ self.kind_of
        kinds = self.kinds[mass.argmax(-1)] * ops.sigmoid(STEEP * (ops.amax(mass) - SURE))[:, None, None]
        return ops.concatenate((how[:, None], self.table[classes].reshape(-1, RANKS * SLOTS, WIDTH), kinds), 1)


class WordTokens(Part):
    """The likeliest words of a description, the surest first. ``table`` [WORDS,D] holds the words."""

    def __init__(self) -> None:
        self.table = parameter(WORDS, WIDTH)
        self.sure = parameter(WIDTH)

    def forward(self, shares: Any) -> Any:
        """Map the probabilities of words [N,WORDS] to [N,WORD_SLOTS,D]."""
        top, found = self.ops.topk(shares, WORD_SLOTS)
        return self.table[found] + top[..., None] * self.sure


class PositionTokens(Part):
    """Words of the nine regions, and a finer scale: how far down and to the right, along two vectors of their own."""

    def __init__(self) -> None:
        self.rows, self.columns = parameter(2, WIDTH), parameter(2, WIDTH)
        self.center = parameter(WIDTH)
        self.axes = parameter(2, WIDTH)

    def forward(self, where: Any) -> Any:
        """Map positions [...,2], down and to the right, to the sum of their words [...,D]: "top left", "center"."""
        first, last = (self.ops.sigmoid(STEEPER * (bound - where / CELLS)) for bound in (1 / 3, 2 / 3))
        ends = self.ops.stack((first, 1 - last))  # [...,2,2]
        words = ends[..., 0, :] @ self.rows + ends[..., 1, :] @ self.columns
        middle = last - first
        return words + middle[..., :1] * middle[..., 1:] * self.center + (where / GRID - 1) @ self.axes


class ShapeDetector(Part):
    """Shapes in reading order."""

    def __init__(self) -> None:
        self.fc1, self.fc2 = Linear(WIDTH, 2 * WIDTH), Linear(2 * WIDTH, PARTS * (1 + sum(SHAPE_CLASSES)))
        self.sizes = parameter(3, WIDTH)
        self.names = parameter(SHAPES, WIDTH)
        self.thing = parameter(WIDTH)

    def logits(self, features: Any) -> Any:
        """Map standardized features [N,P,D] to logits of all cells [N,C,C,1+25]."""
        return over_picture(self.fc2(self.ops.gelu(self.fc1(features))), 2)

    def forward(self, features: Any, colors: Any, positions: PositionTokens) -> Any:
        """Map standardized features [N,P,D] and the colors' words [12,D] to [N,SHAPE_SLOTS,D].

        Tokens beyond the shapes found are zero.
        """
        ops = self.ops
        found, where, classes = find_peaks(ops, self.logits(features), SHAPE_SLOTS)
        sizes, tints, names = (ops.softmax(each) for each in split(classes, *SHAPE_CLASSES))
        tokens = self.thing + sizes @ self.sizes + tints @ colors + names @ self.names + positions(where)
        third = ops.integers(where[..., 0] * 3 / CELLS)
        order = ops.argsort(third * CELLS + where[..., 1] + ~found * (4 * CELLS))
        return ops.take(tokens * found[..., None], order)


class TextReader(Part):
    """Lines of text, letter by letter.

    Letters are small: they are found by convolutions over the stem's maps of strides 8 and 16 and the patches'
    features, over spots of 16 x 8 pixels, since letters may stand closer beside each other than a cell is wide.
    """

    def __init__(self) -> None:
        self.norm8, self.norm16 = LayerNorm(FINE), LayerNorm(MEDIUM)
        self.fine = Conv(FINE, LETTER_CHANNELS, 3)
        self.medium, self.coarse = Linear(MEDIUM, LETTER_CHANNELS), Linear(WIDTH, LETTER_CHANNELS)
        self.conv1 = Conv(LETTER_CHANNELS, LETTER_CHANNELS, 3)
        self.conv2 = Conv(LETTER_CHANNELS, 2 * LETTER_CHANNELS, 3)
        self.out = Linear(2 * LETTER_CHANNELS, 1 + CHARACTERS)
        self.first = parameter(CHARACTERS, WIDTH)
        self.later = parameter(CHARACTERS, WIDTH)
        self.text = parameter(WIDTH)

    def logits(self, cells: Any, features: Any) -> Any:
        """Map gathered stem values [N,P,GATHERED] and standardized features [N,P,D] to logits [N,C,2C,1+62]."""
        ops = self.ops
        fine, medium = split(cells, 16 * FINE, 4 * MEDIUM)
        x = self.fine(self.norm8(over_picture(fine, 4)))[:, ::2]
        x = x + ops.repeat(self.medium(self.norm16(over_picture(medium, 2))), 2, axis=2)
        coarse = self.coarse(features).reshape(-1, GRID, GRID, LETTER_CHANNELS)
        x = x + ops.repeat(ops.repeat(coarse, 2, axis=1), 4, axis=2)
        for conv in (self.conv1, self.conv2):
            x = conv(x.clip(0))
        return self.out(x.clip(0))

    def forward(self, cells: Any, features: Any, tints: Any, colors: Any, positions: PositionTokens) -> Any:
        """Find and read lines, [N,LINES*(LETTERS+1),D].

        Args:
            cells: gathered stem values, [N,P,GATHERED].
            features: standardized features, [N,P,D].
            tints: probabilities of colors in each cell, [N,C,C,12].
            colors: their words, [12,D].
            positions: words of positions.
        """
        ops = self.ops
        found, where, letters = find_peaks(ops, self.logits(cells, features), LINES * LETTERS)
        line = found * (1 + (where[..., 0] > line_border(ops, found, where[..., 0])))  # 1, 2, or 0 for nothing
        order = ops.argsort((line + 3 * ~found) * CELLS + where[..., 1])
        line, where, shares = (ops.take(each, order) for each in (line, where, ops.softmax(letters)))
        cell = ops.integers(where).clip(0, CELLS - 1)
        tint = ops.take(tints.reshape(-1, CELLS * CELLS, COLORS), cell[..., 0] * CELLS + cell[..., 1])
        tokens = []
        for number in range(1, LINES + 1):
            mine = line == number
            slot = ops.where(mine, mine.cumsum(-1) - 1, LETTERS)[..., None] == ops.arange(LETTERS, mine)
            spelled = ops.like(slot, shares).swapaxes(1, 2) @ shares  # [N,LETTERS,CHARACTERS]
            weights = shared(ops.like(mine, where))[:, None]
            right = ops.amax(ops.where(mine, where[..., 1], -_BEYOND))
            left = -ops.amax(ops.where(mine, -where[..., 1], -_BEYOND))
            middle = ops.stack(((weights @ where[..., :1])[:, 0, 0], (left + right) / 2))
            color = shared((weights @ tint) ** 4)[:, 0] @ colors
            last = (self.text + color + positions(middle)) * mine.any(-1)[:, None]
            tokens += [spelled[:, :1] @ self.first, spelled[:, 1:] @ self.later, last[:, None]]
        return ops.concatenate(tokens, 1)


class StructuredTokens(Part):
    """All structured tokens; photographs and drawings have slots of their own."""

    def __init__(self) -> None:
        self.class_names, self.words = ClassTokens(), WordTokens()
        self.things, self.lines, self.places = ShapeDetector(), TextReader(), PositionTokens()
        self.medium = parameter(2, WIDTH)
        self.colors = parameter(COLORS, WIDTH)

    def forward(self, probabilities: Any, shares: Any, cells: Any, features: Any, labels: Any) -> Any:
        """Describe a picture in words, [N,PREFIX_TOKENS,D].

        Args:
            probabilities: of the stem's classes, [N,1000].
            shares: probabilities of words that describe a photograph, [N,WORDS].
            cells: what the stem's maps say about each patch, [N,P,GATHERED].
            features: standardized ones of the last block, [N,P,D].
            labels: label probabilities, [N,P,4*L].
        """
        ops = self.ops
        shown = over_picture(labels, 2)
        mean = shown.mean((1, 2))
        photo = ops.sigmoid(STEEP * (mean[:, PHOTO] - 0.5))[:, None, None]
        background = shared(mean[:, BACKGROUND_LABELS] ** 4) @ self.colors
        medium = photo * self.medium[0] + (1 - photo) * self.medium[1]
        shapes = self.things(features, self.colors, self.places)
        text = self.lines(cells, features, shown[..., COLOR_LABELS], self.colors, self.places)
        drawing = (1 - photo) * ops.concatenate((background[:, None], shapes), 1)
        text = (1 - photo) * text + photo * self.words(shares)
        return ops.concatenate((medium, photo * self.class_names(probabilities), drawing, text), 1)


def find_peaks(ops: Any, logits: Any, most: int) -> tuple[Any, Any, Any]:
    """The hottest peaks of a heat map, each with what else is said there.

    Args:
        ops: of the arrays.
        logits: of all spots, [N,rows,columns,1+K]: the heat of a middle, then K others.
        most: how many.

    Returns:
        Whether there is something [N,most], where [N,most,2], and the other logits there [N,most,K].
    """
    images, rows, columns, count = logits.shape
    heat = ops.pad(ops.sigmoid(logits[..., 0]))
    around = ops.stack([heat[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)])
    peak = around[..., 4] == ops.amax(around)
    score, spots = ops.topk((peak * around.sum(-1)).reshape(images, rows * columns), most)
    shares = shared(ops.take(around.reshape(images, rows * columns, 9), spots))
    where = ops.like(ops.stack((spots // columns, spots % columns)), shares) + 0.5 + shares @ ops.like(_OFFSETS, shares)
    where = where * ops.like([CELLS / rows, CELLS / columns], where)
    there = ops.take(logits.reshape(images, rows * columns, count), spots)
    return score > FOUND, where, there[..., 1:]


def line_border(ops: Any, found: Any, down: Any) -> Any:
    """Where one line ends and the next begins [N,1]: the widest gap between letters' middles [N,K], if wide enough."""
    lowest = ops.amax(ops.where(found, down, 0.0))[:, None]
    down = ops.where(found, down, lowest)
    down = ops.take(down, ops.argsort(down))
    gaps = down[:, 1:] - down[:, :-1]
    index = gaps.argmax(-1)[:, None]
    widest = ops.take(gaps, index)
    return ops.where(widest > APART, ops.take(down, index) + widest / 2, math.inf)


def shared(x: Any) -> Any:
    """Divide by the sum over the last axis; zeros stay zeros."""
    return x / x.sum(-1)[..., None].clip(_TINY)


def split(x: Any, *widths: int) -> Iterator[Any]:
    """The first so many values of the last axis, the next so many, and so on."""
    first = 0
    for width in widths:
        yield x[..., first : first + width]
        first += width


def over_picture(x: Any, side: int) -> Any:
    """Arrange values of ``side`` x ``side`` spots of each patch [N,P,side*side*V] over the picture
    [N,G*side,G*side,V]."""
    images, values = len(x), x.shape[2] // side**2
    x = x.reshape(images, GRID, GRID, side, side, values).swapaxes(2, 3)
    return x.reshape(images, GRID * side, GRID * side, values)

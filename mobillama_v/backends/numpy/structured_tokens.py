"""What the hybrid tower tells in words, for one image over numpy: :mod:`mobillama_v.model.vision.structured_tokens`
explains it.

Shapes as there, without the axis of images.
"""

from __future__ import annotations

import numpy as np

from mobillama_v.backends.numpy.layers import Array, Conv, LayerNorm, Linear, Tensors, gelu, sigmoid, softmax
from mobillama_v.model.vision.hybrid_lite0_sizes import (
    APART,
    BACKGROUND_LABELS,
    CHARACTERS,
    CLASSES,
    COLOR_LABELS,
    COLORS,
    FEATURE_SHARE,
    FINE,
    FOUND,
    GRID,
    KIND_SLOTS,
    KINDS,
    LABELS,
    LETTER_CHANNELS,
    LETTERS,
    LINE_SLOTS,
    LINES,
    MEDIUM,
    PARTS,
    PHOTO,
    RANKS,
    SHAPES,
    SLOTS,
    STEEP,
    STEEPER,
    SURE,
    THING_KINDS,
    THINGS,
    UNSURE,
    WIDTH,
)

_CELLS = 2 * GRID  # along a side
_TINY = np.float32(1e-12)


class LabelTokens:
    """The patch part in words."""

    def __init__(self, tensors: Tensors) -> None:
        self._norm = LayerNorm(tensors.under("norm"), WIDTH)
        self._labels = Linear(tensors.under("labels"), WIDTH, PARTS * LABELS)
        self._table = tensors.floats("table", PARTS * LABELS, WIDTH)
        self._place = tensors.floats("place", 1, GRID * GRID, WIDTH)[0]

    def __call__(self, x: Array) -> tuple[Array, Array, Array]:
        """[P,D] to the patch part [P,D], standardized features [P,D] and label probabilities [P,4*L]."""
        features = self._norm(x)
        told = sigmoid(self._labels(features))
        return np.float32(FEATURE_SHARE) * features + told @ self._table + self._place, features, told


class ClassTokens:
    """The likeliest classes in words."""

    def __init__(self, tensors: Tensors) -> None:
        self._table = tensors.floats("table", CLASSES, SLOTS, WIDTH)
        self._how = tensors.floats("how", 3, WIDTH)
        self._kinds = tensors.floats("kinds", KINDS, KIND_SLOTS, WIDTH)
        self._kind_of = tensors.floats("kind_of", CLASSES, KINDS)

    def __call__(self, probabilities: Array) -> Array:
        """[1000] to [1+RANKS*SLOTS+KIND_SLOTS,D]."""
        classes = np.argsort(-probabilities, kind="stable")[:RANKS]
        sure, unsure = (sigmoid(STEEP * (probabilities[classes[0]] - bound)) for bound in (SURE, UNSURE))
        how = np.stack((sure, (1 - sure) * unsure, (1 - sure) * (1 - unsure))) @ self._how
        masses = probabilities @ self._kind_of
        kind = masses.argmax()
        kinds = self._kinds[kind] * sigmoid(STEEP * (masses[kind] - SURE))
        return np.concatenate((how[None], self._table[classes].reshape(-1, WIDTH), kinds))


class PositionTokens:
    """Words of places."""

    def __init__(self, tensors: Tensors) -> None:
        self._rows, self._columns = tensors.floats("rows", 2, WIDTH), tensors.floats("columns", 2, WIDTH)
        self._center, self._axes = tensors.floats("center", WIDTH), tensors.floats("axes", 2, WIDTH)

    def __call__(self, where: Array) -> Array:
        """[...,2] to [...,D]."""
        first, last = (sigmoid(STEEPER * (bound - where / _CELLS)) for bound in (1 / 3, 2 / 3))
        ends = np.stack((first, 1 - last), axis=-1)
        words = ends[..., 0, :] @ self._rows + ends[..., 1, :] @ self._columns
        middle = (last - first).prod(-1, keepdims=True) * self._center
        return words + middle + (where / GRID - 1) @ self._axes


def find_peaks(logits: Array, most: int) -> tuple[Array, Array, Array]:
    """The hottest peaks of a heat map [rows,columns,1+K]: found [most], where [most,2], other logits [most,K]."""
    rows, columns, _ = logits.shape
    heat = np.zeros((rows + 2, columns + 2), np.float32)
    heat[1:-1, 1:-1] = sigmoid(logits[..., 0])
    around = np.stack([heat[i : i + rows, j : j + columns] for i in range(3) for j in range(3)])
    peak = around[4] == around.max(0)
    scores = np.where(peak, around.sum(0), 0).reshape(-1)
    spots = np.argsort(-scores, kind="stable")[:most]
    shares = around.reshape(9, -1)[:, spots].T
    shares = shares / np.maximum(shares.sum(-1, keepdims=True), _TINY)
    where = np.stack((spots // columns, spots % columns), axis=-1) + np.float32(0.5) + shares @ _OFF
    where = where * (_CELLS / np.array([rows, columns], np.float32))
    return scores[spots] > FOUND, where.astype(np.float32), logits.reshape(rows * columns, -1)[spots, 1:]


_OFF = np.array([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)], np.float32)


class ShapeDetector:
    """Shapes, told in reading order."""

    def __init__(self, tensors: Tensors) -> None:
        self._fc1 = Linear(tensors.under("fc1"), WIDTH, 2 * WIDTH)
        self._fc2 = Linear(tensors.under("fc2"), 2 * WIDTH, PARTS * (1 + sum(THING_KINDS)))
        self._sizes, self._names = tensors.floats("sizes", 3, WIDTH), tensors.floats("names", SHAPES, WIDTH)
        self._thing = tensors.floats("thing", WIDTH)

    def __call__(self, features: Array, colors: Array, places: PositionTokens) -> Array:
        """Features [P,D] and the colors' words [12,D] to [THINGS,D]."""
        logits = over_picture(self._fc2(gelu(self._fc1(features))), 2)
        found, where, kinds = find_peaks(logits, THINGS)
        sizes, tints, names = (softmax(each) for each in np.split(kinds, np.cumsum(THING_KINDS)[:-1], axis=-1))
        told = self._thing + sizes @ self._sizes + tints @ colors + names @ self._names + places(where)
        third = np.floor(where[:, 0] * 3 / _CELLS)
        order = np.argsort(third * _CELLS + where[:, 1] + np.where(found, 0, 9 * GRID), kind="stable")
        return (told * found[:, None])[order]


class TextReader:
    """Lines of text, told letter by letter."""

    def __init__(self, tensors: Tensors) -> None:
        wide = LETTER_CHANNELS
        self._norm8, self._norm16 = (
            LayerNorm(tensors.under("norm8"), FINE),
            LayerNorm(tensors.under("norm16"), MEDIUM),
        )
        self._fine = Conv(tensors.under("fine"), FINE, wide, 3)
        self._medium = Linear(tensors.under("medium"), MEDIUM, wide)
        self._coarse = Linear(tensors.under("coarse"), WIDTH, wide)
        self._conv1, self._conv2 = (
            Conv(tensors.under("conv1"), wide, wide, 3),
            Conv(tensors.under("conv2"), wide, 2 * wide, 3),
        )
        self._out = Linear(tensors.under("out"), 2 * wide, 1 + CHARACTERS)
        self._first, self._later = (tensors.floats(name, CHARACTERS, WIDTH) for name in ("first", "later"))
        self._text = tensors.floats("text", WIDTH)

    def logits(self, cells: Array, features: Array) -> Array:
        """Gathered stem values [P,GATHERED] and features [P,D] to [C,2C,1+62]."""
        fine, medium, _ = np.split(cells, (16 * FINE, 16 * FINE + 4 * MEDIUM), axis=-1)
        x = self._fine(self._norm8(over_picture(fine, 4)))[::2]
        x += self._medium(self._norm16(over_picture(medium, 2))).repeat(2, axis=1)
        x += self._coarse(features).reshape(GRID, GRID, -1).repeat(2, axis=0).repeat(4, axis=1)
        for conv in (self._conv1, self._conv2):
            x = conv(np.maximum(x, 0))
        return self._out(np.maximum(x, 0))

    def __call__(self, cells: Array, features: Array, tints: Array, colors: Array, places: PositionTokens) -> Array:
        """Those, the colors' probabilities in each cell [C,C,12] and their words [12,D], to [LINES*LINE_SLOTS,D]."""
        found, where, letters = find_peaks(self.logits(cells, features), LINES * LETTERS)
        line = found * (1 + (where[:, 0] > _between(found, where[:, 0])))
        order = np.argsort(np.where(found, line, 3) * _CELLS + where[:, 1], kind="stable")
        line, where, shares = line[order], where[order], softmax(letters)[order]
        row, column = np.clip(where.astype(int), 0, _CELLS - 1).T
        tint = tints[row, column]
        told = []
        for number in range(1, LINES + 1):
            mine = line == number
            told.append(self._line(where[mine], shares[mine], tint[mine], colors, places))
        return np.concatenate(told)

    def _line(self, where: Array, letters: Array, tints: Array, colors: Array, places: PositionTokens) -> Array:
        """Places [M,2], shares [M,62] and colors [M,12] of a line's letters, in order, to [LINE_SLOTS,D]."""
        told = np.zeros((LINE_SLOTS, WIDTH), np.float32)
        if len(where):
            told[0] = letters[0] @ self._first
            told[1 : min(len(where), LETTERS)] = letters[1:LETTERS] @ self._later
            down, across = where[:, 0].mean(), (where[:, 1].min() + where[:, 1].max()) / 2
            told[-1] = self._text + _sharpened(tints.mean(0)) @ colors + places(np.array([down, across]))
        return told


def _between(found: Array, down: Array) -> float:
    """Where one line ends and the next begins: the widest gap between letters' middles [K], if wide enough."""
    middles = np.sort(down[found])
    gaps = middles[1:] - middles[:-1]
    widest = gaps.argmax() if len(gaps) else 0
    return float(middles[widest] + gaps[widest] / 2) if len(gaps) and gaps[widest] > APART else np.inf


def _sharpened(shares: Array) -> Array:
    powers = shares**4
    return powers / np.maximum(powers.sum(-1, keepdims=True), _TINY)


class StructuredTokens:
    """Everything that is told in words before the patches."""

    def __init__(self, tensors: Tensors) -> None:
        self._class_names = ClassTokens(tensors.under("class_names"))
        self._things, self._lines = ShapeDetector(tensors.under("things")), TextReader(tensors.under("lines"))
        self._places = PositionTokens(tensors.under("places"))
        self._medium, self._colors = tensors.floats("medium", 2, WIDTH), tensors.floats("colors", COLORS, WIDTH)

    def __call__(self, probabilities: Array, cells: Array, features: Array, told: Array) -> Array:
        """Classes [1000], gathered stem values [P,GATHERED], features [P,D] and labels [P,4*L] to [TOLD,D]."""
        shown = over_picture(told, 2)
        labels = shown.mean((0, 1))
        photo = sigmoid(STEEP * (labels[PHOTO] - 0.5))
        ground = _sharpened(labels[BACKGROUND_LABELS]) @ self._colors
        medium = photo * self._medium[0] + (1 - photo) * self._medium[1]
        things = self._things(features, self._colors, self._places)
        lines = self._lines(cells, features, shown[..., COLOR_LABELS], self._colors, self._places)
        drawn = np.concatenate((ground[None], things, lines))
        return np.concatenate((medium[None], photo * self._class_names(probabilities), (1 - photo) * drawn))


def over_picture(x: Array, side: int) -> Array:
    """Arrange values of ``side`` x ``side`` spots of each patch [P,side*side*V] over the picture [G*side,G*side,V]."""
    x = x.reshape(GRID, GRID, side, side, -1).transpose(0, 2, 1, 3, 4)
    return x.reshape(GRID * side, GRID * side, -1)

"""Per-cell ground truth of a scene, for teaching a vision trunk what is where before any language is involved."""

from __future__ import annotations

import string

import numpy as np

from nano import figures
from nano.scenes import COLOR_NAMES, SIDE, Scene, clear_size, thing_mask

CELL = 16
CELLS = SIDE // CELL
CHARACTERS = string.ascii_uppercase + string.digits
LABEL_NAMES: tuple[str, ...] = (
    *(f"shape:{name}" for name in (*figures.SHAPES, "text")),
    *(f"color:{name}" for name in COLOR_NAMES),
    "center",
    "large",
    *(f"background:{name}" for name in COLOR_NAMES),
    *(f"character:{character}" for character in CHARACTERS),
)
_INDEX = {name: index for index, name in enumerate(LABEL_NAMES)}
_SHAPE_COVER = 0.3
_LETTER_COVER = 0.4


def cell_labels(scene: Scene) -> np.ndarray:
    """Multi-hot labels, uint8 ``[14, 14, len(LABEL_NAMES)]``, of the 16-pixel cells of a scene."""
    labels = np.zeros((CELLS, CELLS, len(LABEL_NAMES)), dtype=np.uint8)
    labels[..., _INDEX[f"background:{scene.background}"]] = 1
    for index, thing in enumerate(scene.things):
        covered = _label_letters(labels, scene, index) if thing.kind == "word" else _shape_cells(scene, index)
        labels[covered, _INDEX[f"shape:{thing.shape}"]] = 1
        labels[covered, _INDEX[f"color:{thing.color}"]] = 1
        if clear_size(thing) == "large":
            labels[covered, _INDEX["large"]] = 1
        row, column = _middle(thing.box)
        labels[row, column, _INDEX["center"]] = 1
    return labels


def _shape_cells(scene: Scene, index: int) -> np.ndarray:
    cover = np.asarray(thing_mask(scene, index).reduce(CELL), dtype=np.float32) / 255
    return cover >= min(_SHAPE_COVER, float(cover.max()))


def _label_letters(labels: np.ndarray, scene: Scene, index: int) -> np.ndarray:
    """Label each letter once, where its middle is, so that a word is read cell by cell; all cells of it."""
    thing = scene.things[index]
    covered = np.zeros((CELLS, CELLS), dtype=bool)
    boxes = figures.lettering(thing.text, scene.key(index), thing.box).boxes
    for letter, box in zip(thing.text, boxes, strict=True):
        row, column = _middle(box)
        labels[row, column, _INDEX[f"character:{letter.upper()}"]] = 1
        covered |= _box_cells(box)
    return covered


def _middle(box: figures.Box) -> tuple[int, int]:
    return min(CELLS - 1, int((box[1] + box[3]) / 2 / CELL)), min(CELLS - 1, int((box[0] + box[2]) / 2 / CELL))


def _box_cells(box: figures.Box) -> np.ndarray:
    """Cells of which the box covers enough, and the one of its middle."""
    starts = np.arange(CELLS) * CELL
    across = np.clip(np.minimum(box[2], starts + CELL) - np.maximum(box[0], starts), 0, None)
    down = np.clip(np.minimum(box[3], starts + CELL) - np.maximum(box[1], starts), 0, None)
    cells = np.outer(down, across) >= _LETTER_COVER * CELL * CELL
    cells[_middle(box)] = True
    return cells

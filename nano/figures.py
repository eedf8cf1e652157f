"""Geometry and colors of what scenes are drawn from: shape outlines and laid-out letters.

Everything random is a function of a ``key`` string, so the sampler, the renderer and the label maker, which run
apart, see the same tilt, the same font and the same letter boxes.
"""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

Point = tuple[float, float]
Box = tuple[float, float, float, float]

COLORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((232, 28, 34), (255, 0, 0)),
    "green": ((36, 160, 58), (0, 255, 0), (0, 128, 0)),
    "blue": ((36, 88, 222), (0, 0, 255)),
    "yellow": ((250, 216, 30), (255, 255, 0)),
    "orange": ((255, 140, 0),),
    "purple": ((130, 40, 165), (128, 0, 128)),
    "pink": ((255, 150, 190), (255, 105, 180)),
    "brown": ((121, 72, 35), (165, 42, 42)),
    "black": ((12, 12, 12),),
    "white": ((250, 250, 250),),
    "gray": ((128, 128, 128),),
    "teal": ((0, 128, 128), (20, 150, 150)),
}
"""Typical RGB values of each color name; a drawn color is one of them, slightly shifted."""

SIMILAR: frozenset[frozenset[str]] = frozenset(
    frozenset(pair.split("-"))
    for pair in (
        "red-orange red-brown red-pink orange-yellow orange-brown pink-purple pink-white blue-purple blue-teal "
        "green-teal gray-teal gray-brown black-brown purple-brown yellow-white"
    ).split()
)
"""Pairs of color names too close for a thing and its background."""


# --- shapes ---------------------------------------------------------------------------------------------------------


def _ellipse(width: float, height: float) -> list[Point]:
    turns = (2 * math.pi * k / 64 for k in range(64))
    return [(width / 2 * math.cos(t), height / 2 * math.sin(t)) for t in turns]


def _rectangle(width: float, height: float) -> list[Point]:
    return [(-width / 2, -height / 2), (width / 2, -height / 2), (width / 2, height / 2), (-width / 2, height / 2)]


def _star() -> list[Point]:
    radii = (1.0, 0.42)
    turns = [math.pi * k / 5 - math.pi / 2 for k in range(10)]
    return [(radii[k % 2] * math.cos(t), radii[k % 2] * math.sin(t)) for k, t in enumerate(turns)]


def _heart() -> list[Point]:
    turns = (2 * math.pi * k / 64 for k in range(64))
    return [
        (
            16 * math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
        )
        for t in turns
    ]


def _cross(arm: float) -> list[Point]:
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    half = quarter + [(-y, x) for x, y in quarter]
    return half + [(-x, -y) for x, y in half]


def _long(rng: random.Random, shape: Callable[[float, float], list[Point]], low: float, high: float) -> list[Point]:
    ratio = rng.uniform(low, high)
    return shape(1.0, ratio) if rng.random() < 0.6 else shape(ratio, 1.0)


_OUTLINES: dict[str, Callable[[random.Random], list[Point]]] = {
    "circle": lambda rng: _ellipse(1, 1),
    "square": lambda rng: _rectangle(1, 1),
    "rectangle": lambda rng: _long(rng, _rectangle, 0.42, 0.66),
    "triangle": lambda rng: [(0.0, -rng.uniform(0.75, 1.0)), (0.5, 0.0), (-0.5, 0.0)],
    "star": lambda rng: _star(),
    "heart": lambda rng: _heart(),
    "diamond": lambda rng: [(0.0, -0.5), (rng.uniform(0.32, 0.38), 0.0), (0.0, 0.5), (-0.35, 0.0)],
    "cross": lambda rng: _cross(rng.uniform(0.28, 0.38)),
    "ring": lambda rng: _ellipse(1, 1),
    "oval": lambda rng: _long(rng, _ellipse, 0.48, 0.64),
}
_LARGEST_TILT = {"square": 10, "rectangle": 10, "triangle": 20, "star": 36, "heart": 15, "cross": 10, "oval": 12}

SHAPES: tuple[str, ...] = tuple(_OUTLINES)


def outline(shape: str, key: str) -> list[list[Point]]:
    """The polygons of ``shape`` in a frame of longer side 1 and corner (0, 0); a second one is a hole."""
    rng = random.Random(f"outline:{key}")
    points = _OUTLINES[shape](rng)
    tilt = _LARGEST_TILT.get(shape, 0)
    if tilt and rng.random() < 0.45:
        angle = math.radians(rng.uniform(-tilt, tilt))
        cos, sin = math.cos(angle), math.sin(angle)
        points = [(x * cos - y * sin, x * sin + y * cos) for x, y in points]
    left, top = min(x for x, _ in points), min(y for _, y in points)
    side = max(max(x for x, _ in points) - left, max(y for _, y in points) - top)
    outer = [((x - left) / side, (y - top) / side) for x, y in points]
    if shape != "ring":
        return [outer]
    hole = rng.uniform(0.5, 0.62)
    return [outer, [(0.5 + (x - 0.5) * hole, 0.5 + (y - 0.5) * hole) for x, y in outer]]


def extent(points: list[Point]) -> Point:
    """Width and height of an outline that starts at (0, 0)."""
    return max(x for x, _ in points), max(y for _, y in points)


def fitted(shape: str, key: str, box: Box) -> list[list[Point]]:
    """:func:`outline` scaled, without distortion, into the middle of ``box``."""
    polygons = outline(shape, key)
    width, height = extent(polygons[0])
    scale = min((box[2] - box[0]) / width, (box[3] - box[1]) / height)
    left = (box[0] + box[2] - width * scale) / 2
    top = (box[1] + box[3] - height * scale) / 2
    return [[(left + x * scale, top + y * scale) for x, y in polygon] for polygon in polygons]


# --- letters --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lettering:
    """A text laid out letter by letter: ``origins`` are baseline starts, ``boxes`` the ink of each letter."""

    face: str
    size: float
    origins: tuple[Point, ...]
    boxes: tuple[Box, ...]


@lru_cache(maxsize=1)
def faces() -> tuple[str, ...]:
    """Font faces to draw with: Pillow's own (named ``""``) and the DejaVu files that matplotlib ships, if any."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return ("",)
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    names = ("Sans", "Sans-Bold", "Serif", "Serif-Bold", "SansMono", "SansMono-Bold")
    paths = (folder / f"DejaVu{name}.ttf" for name in names)
    return ("", *(str(path) for path in paths if path.exists()))


@lru_cache(maxsize=1024)
def font(face: str, size: float) -> ImageFont.FreeTypeFont:
    """The font of a face from :func:`faces` at a size in pixels."""
    if face:
        return ImageFont.truetype(face, size, layout_engine=ImageFont.Layout.BASIC)
    return ImageFont.load_default(size)  # type: ignore[return-value]


@lru_cache(maxsize=2048)
def _letter_at_100(face: str, letter: str) -> tuple[Box, float]:
    """A letter's ink box, relative to its origin, and its advance (Pillow's ``getbbox`` gives advances, not ink)."""
    ink = font(face, 100)
    mask, (dx, dy) = ink.getmask2(letter, mode="L", anchor="ls")
    left, top, right, bottom = mask.getbbox()
    return (left + dx, top + dy, right + dx, bottom + dy), ink.getlength(letter)


def _at_100(text: str, key: str) -> Lettering:
    rng = random.Random(f"letters:{key}")
    face = rng.choice(faces())
    spacing = rng.uniform(0.0, 8.0)
    x, origins, boxes = 0.0, [], []
    for letter in text:
        (left, top, right, bottom), advance = _letter_at_100(face, letter)
        origins.append((x, 0.0))
        boxes.append((x + left, top, x + right, bottom))
        x += advance + spacing
    return Lettering(face, 100.0, tuple(origins), tuple(boxes))


def _bounds(boxes: tuple[Box, ...]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def text_extent(text: str, key: str) -> Point:
    """Width and height of the ink of ``text`` at a font size of 1."""
    left, top, right, bottom = _bounds(_at_100(text, key).boxes)
    return (right - left) / 100, (bottom - top) / 100


def lettering(text: str, key: str, box: Box) -> Lettering:
    """Lay ``text`` out so that its ink fills ``box`` as far as its proportions allow, centered."""
    unit = _at_100(text, key)
    left, top, right, bottom = _bounds(unit.boxes)
    scale = min((box[2] - box[0]) / (right - left), (box[3] - box[1]) / (bottom - top))
    dx = (box[0] + box[2]) / 2 - (left + right) / 2 * scale
    dy = (box[1] + box[3]) / 2 - (top + bottom) / 2 * scale
    origins = tuple((x * scale + dx, y * scale + dy) for x, y in unit.origins)
    boxes = tuple((a * scale + dx, b * scale + dy, c * scale + dx, d * scale + dy) for a, b, c, d in unit.boxes)
    return Lettering(unit.face, 100.0 * scale, origins, boxes)

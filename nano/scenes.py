"""Drawn scenes: sampled, described exactly by their data, and rendered as 224 x 224 pictures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from nano import figures
from nano.figures import COLORS, SHAPES, SIMILAR
from nano.lexicon import TRAIN_WORDS, sample_text

SIDE = 224
STYLES: tuple[str, ...] = ("single", "few", "count", "word", "two_words")
COLOR_NAMES: tuple[str, ...] = tuple(COLORS)
SMALL_BELOW, LARGE_FROM = 48, 62
"""Longer sides, in pixels, between which a thing is neither clearly small nor clearly large."""

_MARGIN = 8
_REGION_MARGIN = 6
_SUPERSAMPLING = 2
_LOW_RESOLUTION = 64

PixelBox = tuple[int, int, int, int]


@dataclass(frozen=True)
class Thing:
    """One shape or one word in a scene; ``shape`` is ``"text"`` and ``text`` is set for words only."""

    kind: Literal["shape", "word"]
    shape: str
    color: str
    size: Literal["small", "large"]
    box: PixelBox
    text: str = ""

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the box, in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def longer_side(self) -> int:
        """The larger of the box's width and height."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True)
class Scene:
    """Things on a background; ``seed`` fixes everything about the drawing that no question asks about."""

    things: tuple[Thing, ...]
    background: str
    seed: int

    @property
    def shapes(self) -> tuple[Thing, ...]:
        """The things that are shapes."""
        return tuple(thing for thing in self.things if thing.kind == "shape")

    @property
    def words(self) -> tuple[Thing, ...]:
        """The things that are words, from top to bottom as sampled."""
        return tuple(thing for thing in self.things if thing.kind == "word")

    def key(self, index: int) -> str:
        """The key under which :mod:`figures` lays out thing number ``index``."""
        return f"{self.seed}:{index}"


def region(thing: Thing) -> str | None:
    """Which ninth of the picture the thing's center is in, e.g. ``top left``; ``None`` if too close to call."""
    x, y = thing.center
    if any(abs(value - edge) < _REGION_MARGIN for value in (x, y) for edge in (SIDE / 3, 2 * SIDE / 3)):
        return None
    return nearest_region(thing)


def nearest_region(thing: Thing) -> str:
    """Which ninth of the picture the thing's center is in, however close to a border."""
    x, y = (min(2, int(value * 3 / SIDE)) for value in thing.center)
    name = f"{('top', '', 'bottom')[y]} {('left', '', 'right')[x]}".strip()
    return name or "center"


def clear_size(thing: Thing) -> str | None:
    """``small`` or ``large`` for a shape whose size leaves no doubt, else ``None``."""
    if thing.kind == "word" or SMALL_BELOW < thing.longer_side < LARGE_FROM:
        return None
    return thing.size


# --- sampling -------------------------------------------------------------------------------------------------------


class _NoRoom(Exception):
    """A thing found no free place; the sampler starts the scene again."""


def sample_scene(rng: random.Random, style: str, *, words: Sequence[str] = TRAIN_WORDS) -> Scene:
    """Draw a scene of one of :data:`STYLES` from ``rng``; ``words`` replaces the lexicon for held-out evaluations.

    Raises:
        ValueError: for an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; choose one of {', '.join(STYLES)}")
    while True:
        sampler = _Sampler(rng, words)
        try:
            sampler.fill(style)
        except _NoRoom:
            continue
        return Scene(tuple(sampler.things), sampler.background, sampler.seed)


class _Sampler:
    """One attempt at a scene: things are added one by one into the room that is left."""

    def __init__(self, rng: random.Random, words: Sequence[str]) -> None:
        self.rng = rng
        self.lexicon = words
        self.seed = rng.getrandbits(31)
        self.background = _sample_background(rng)
        self.things: list[Thing] = []

    def fill(self, style: str) -> None:
        rng = self.rng
        if style == "single":
            longest = rng.uniform(34, 48) if rng.random() < 0.25 else rng.uniform(48, 110)
            longest = rng.uniform(110, 190) if rng.random() < 0.15 else longest
            # Half of them are the shapes of easy-VQA, as its pictures are this style.
            shape = rng.choice(SHAPES) if rng.random() < 0.75 else rng.choice(("circle", "rectangle", "triangle"))
            self.add_shape(shape, self.color(), longest, edge=2)
        elif style == "few":
            for shape, color in self.distinct_kinds(rng.randint(2, 4)):
                self.add_shape(shape, color, self.longest_side())
        elif style == "count":
            self.fill_count(rng.randint(1, 6))
        elif style == "word":
            self.add_word(sample_text(rng, self.lexicon), self.text_color(), (_MARGIN, SIDE - _MARGIN), tallest=110)
            for shape, color in self.distinct_kinds(rng.choice((0, 0, 0, 1, 1, 2))):
                self.add_shape(shape, color, rng.uniform(32, 44))
        else:
            self.fill_two_words()

    def fill_count(self, total: int) -> None:
        kinds = self.distinct_kinds(self.rng.randint(1, 3))
        if self.rng.random() < 0.5:  # many of one color or of one shape make counting "red things" worthwhile
            kinds = [(shape, kinds[0][1]) for shape, _ in kinds]
        for _ in range(total):
            shape, color = self.rng.choice(kinds)
            small = total > 4 or self.rng.random() < 0.5
            self.add_shape(shape, color, self.rng.uniform(32, 44) if small else self.rng.uniform(64, 74))

    def fill_two_words(self) -> None:
        middle = SIDE // 2
        first = self.text_color()
        second = first if self.rng.random() < 0.6 else self.text_color()
        texts = [sample_text(self.rng, self.lexicon, longest=5) for _ in range(2)]
        self.add_word(texts[0], first, (_MARGIN, middle - _MARGIN // 2), tallest=76)
        self.add_word(texts[1], second, (middle + _MARGIN // 2, SIDE - _MARGIN), tallest=76)

    def longest_side(self) -> float:
        return self.rng.uniform(32, 44) if self.rng.random() < 0.45 else self.rng.uniform(64, 90)

    def color(self) -> str:
        return self.rng.choice([name for name in COLOR_NAMES if not alike(name, self.background)])

    def text_color(self) -> str:
        return self.rng.choice([name for name in COLOR_NAMES if _legible(name, self.background)])

    def distinct_kinds(self, total: int) -> list[tuple[str, str]]:
        kinds: list[tuple[str, str]] = []
        while len(kinds) < total:
            shape, color = self.rng.choice(SHAPES), self.color()
            # Sharing a shape or a color with an earlier thing makes the questions about the pair harder.
            if kinds and self.rng.random() < 0.4:
                other = self.rng.choice(kinds)
                shape, color = (other[0], color) if self.rng.random() < 0.5 else (shape, other[1])
            if (shape, color) not in kinds:
                kinds.append((shape, color))
        return kinds

    def add_shape(self, shape: str, color: str, longest: float, *, edge: int = _MARGIN) -> None:
        points = figures.outline(shape, f"{self.seed}:{len(self.things)}")[0]
        width, height = (round(value * longest) for value in figures.extent(points))
        size: Literal["small", "large"] = "small" if longest < (SMALL_BELOW + LARGE_FROM) / 2 else "large"
        self.place(Thing("shape", shape, color, size, (0, 0, width, height)), (edge, edge, SIDE - edge, SIDE - edge))

    def add_word(self, text: str, color: str, rows: tuple[int, int], *, tallest: int) -> None:
        width, height = figures.text_extent(text, f"{self.seed}:{len(self.things)}")
        lowest = 32 if any(letter.islower() for letter in text) else 27
        most = min((SIDE - 2 * _MARGIN) / width, min(tallest, rows[1] - rows[0]) / height)
        least = lowest / height
        if most < least:
            raise _NoRoom
        scale = least + (most - least) * max(self.rng.random(), self.rng.random())
        box = (0, 0, max(1, round(width * scale)), max(1, round(height * scale)))
        self.place(Thing("word", "text", color, "large", box, text), (_MARGIN, rows[0], SIDE - _MARGIN, rows[1]))

    def place(self, thing: Thing, area: PixelBox) -> None:
        width, height = thing.box[2:]
        if width > area[2] - area[0] or height > area[3] - area[1]:
            raise _NoRoom
        for _ in range(50):
            x = self.rng.randint(area[0], area[2] - width)
            y = self.rng.randint(area[1], area[3] - height)
            placed = Thing(thing.kind, thing.shape, thing.color, thing.size, (x, y, x + width, y + height), thing.text)
            if region(placed) and not any(_touch(placed.box, other.box) for other in self.things):
                self.things.append(placed)
                return
        raise _NoRoom


def alike(first: str, second: str) -> bool:
    """Whether two color names are the same or too close to tell apart at a glance."""
    return first == second or frozenset((first, second)) in SIMILAR


def _sample_background(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.45:
        return "white"
    return "black" if draw < 0.55 else rng.choice(COLOR_NAMES)


def _legible(color: str, background: str) -> bool:
    """Whether thin strokes of any shade of ``color`` stand out from any shade of ``background``."""
    pairs = ((ink, paper) for ink in COLORS[color] for paper in COLORS[background])
    return not alike(color, background) and all(abs(_luminance(a) - _luminance(b)) > 56 for a, b in pairs)


def _luminance(rgb: tuple[int, int, int]) -> float:
    return 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]


def _touch(first: PixelBox, second: PixelBox) -> bool:
    apart_x = first[2] + _MARGIN <= second[0] or second[2] + _MARGIN <= first[0]
    apart_y = first[3] + _MARGIN <= second[1] or second[3] + _MARGIN <= first[1]
    return not (apart_x or apart_y)


# --- drawing --------------------------------------------------------------------------------------------------------


def draw(scene: Scene) -> Image.Image:
    """Render a scene as an RGB picture of 224 x 224, the same one every time."""
    rng = random.Random(f"draw:{scene.seed}")
    low = not scene.words and rng.random() < (0.5 if len(scene.things) == 1 else 0.12)
    jagged = low and rng.random() < 0.5
    scale = _LOW_RESOLUTION / SIDE if jagged else float(_SUPERSAMPLING)
    canvas = _background(scene.background, round(SIDE * scale), rng)
    for index, thing in enumerate(scene.things):
        mask = thing_mask(scene, index, scale)
        canvas.paste(_shade(thing.color, rng), mask=mask)
        if thing.kind == "shape" and not low and rng.random() < 0.12:
            _stroke(canvas, scene, index, scale, rng)
    if low:
        canvas = canvas.resize((_LOW_RESOLUTION, _LOW_RESOLUTION), Image.Resampling.BOX)
        canvas = canvas.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    else:
        canvas = canvas.reduce(_SUPERSAMPLING)
    return _noisy(canvas, rng) if rng.random() < 0.2 else canvas


def thing_mask(scene: Scene, index: int, scale: float = 1.0) -> Image.Image:
    """An ``L`` image, ``224 * scale`` on a side, that is 255 where thing number ``index`` is drawn."""
    thing = scene.things[index]
    side = round(SIDE * scale)
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    box = _scaled(thing.box, scale)
    if thing.kind == "shape":
        for fill, polygon in zip((255, 0), figures.fitted(thing.shape, scene.key(index), box), strict=False):
            pen.polygon(polygon, fill=fill)
        return mask
    letters = figures.lettering(thing.text, scene.key(index), box)
    ink = figures.font(letters.face, letters.size)
    for letter, origin in zip(thing.text, letters.origins, strict=True):
        pen.text(origin, letter, fill=255, font=ink, anchor="ls")
    return mask


def _scaled(box: PixelBox, scale: float) -> figures.Box:
    left, top, right, bottom = box
    return left * scale, top * scale, right * scale, bottom * scale


def _stroke(canvas: Image.Image, scene: Scene, index: int, scale: float, rng: random.Random) -> None:
    thing = scene.things[index]
    color = (20, 20, 20) if thing.color != "black" else (235, 235, 235)
    width = round(rng.choice((1, 1.5)) * scale)
    for polygon in figures.fitted(thing.shape, scene.key(index), _scaled(thing.box, scale)):
        ImageDraw.Draw(canvas).line([*polygon, polygon[0]], fill=color, width=width, joint="curve")


def _shade(color: str, rng: random.Random, spread: int = 12) -> tuple[int, int, int]:
    base = rng.choice(COLORS[color])
    shift = rng.randint(-spread // 2, spread // 2)  # mostly in common, so that grays stay neutral
    red, green, blue = (max(0, min(255, value + shift + rng.randint(-spread // 2, spread // 2))) for value in base)
    return red, green, blue


def _background(color: str, side: int, rng: random.Random) -> Image.Image:
    if color == "white":  # any very pale tint counts as white
        low = rng.choice((255, 246, 228))
        base = np.array([rng.randint(low, 255) for _ in range(3)], dtype=np.float32)
    else:
        base = np.array(_shade(color, rng), dtype=np.float32)
        if color in ("blue", "green", "purple", "yellow", "teal", "orange"):
            base += (255 - base) * rng.choice((0.0, 0.0, rng.uniform(0.0, 0.35)))
    if rng.random() < 0.7:
        red, green, blue = (int(value) for value in base)
        return Image.new("RGB", (side, side), (red, green, blue))
    across, down = rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06)
    ramp = np.linspace(-1, 1, 32, dtype=np.float32)
    gain = 1 + across * ramp[None, :, None] + down * ramp[:, None, None]
    small = Image.fromarray(np.clip(base * gain, 0, 255).astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BILINEAR)


def _noisy(picture: Image.Image, rng: random.Random) -> Image.Image:
    strength = rng.randint(2, 9)
    grain = np.random.default_rng(rng.getrandbits(32)).integers(
        -strength, strength + 1, (SIDE, SIDE, 3), dtype=np.int16
    )
    return Image.fromarray(np.clip(np.asarray(picture, dtype=np.int16) + grain, 0, 255).astype(np.uint8))

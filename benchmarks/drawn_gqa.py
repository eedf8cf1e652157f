"""A small set in GQA's format that is drawn here: colored shapes, and many questions on each picture."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLORS = {
    "red": (214, 48, 49),
    "green": (39, 174, 96),
    "blue": (41, 98, 219),
    "yellow": (241, 196, 15),
    "purple": (142, 68, 173),
    "black": (30, 30, 34),
}
SHAPES = ("circle", "square", "triangle")
SIZE = (640, 480)  # pixels, about those of GQA's pictures
_CELLS = [(x, y) for y in (120, 360) for x in (110, 320, 530)]
_BACKGROUNDS = ((244, 242, 236), (214, 228, 240), (226, 238, 218))


@dataclass(frozen=True)
class Thing:
    """A shape in a picture, by its center [pixels]."""

    color: str
    shape: str
    x: int
    y: int
    radius: int

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


def draw_gqa(folder: Path, *, images: int, questions: int = 20, seed: int = 0) -> None:
    """Write ``testdev_balanced_questions.json`` and ``images/``; equal arguments give equal files."""
    chance = random.Random(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for i in range(images):
        things = _things(chance)
        _picture(things, chance).save(folder / "images" / f"d{i:05d}.jpg", quality=90)
        for j, (structural, semantic, question, answer) in enumerate(_questions(things, questions, chance)):
            found[f"{i:05d}{j:03d}"] = {
                "imageId": f"d{i:05d}",
                "question": question,
                "answer": answer,
                "isBalanced": True,
                "types": {"structural": structural, "semantic": semantic, "detailed": structural},
            }
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(found), encoding="utf-8")


def _things(chance: random.Random) -> list[Thing]:
    """Three to five different things in cells of their own."""
    kinds = chance.sample([(color, shape) for color in COLORS for shape in SHAPES], chance.randint(3, 5))
    cells = chance.sample(_CELLS, len(kinds))
    return [
        Thing(color, shape, x + chance.randint(-20, 20), y + chance.randint(-20, 20), chance.randint(40, 75))
        for (color, shape), (x, y) in zip(kinds, cells, strict=True)
    ]


def _picture(things: list[Thing], chance: random.Random) -> Image.Image:
    picture = Image.new("RGB", SIZE, chance.choice(_BACKGROUNDS))
    pen = ImageDraw.Draw(picture)
    for thing in things:
        x, y, r = thing.x, thing.y, thing.radius
        fill = COLORS[thing.color]
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif thing.shape == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=fill)
        else:
            pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=fill)
    return picture


def _questions(things: list[Thing], count: int, chance: random.Random) -> list[tuple[str, str, str, str]]:
    """Structural and semantic type, question, answer: ``count`` of all that can be asked, some twice if need be."""
    there = {str(thing) for thing in things}
    found = [("query", "global", "How many shapes are there in the picture?", str(len(things)))]
    for color in COLORS:
        for shape in SHAPES:
            answer = "yes" if f"{color} {shape}" in there else "no"
            found.append(("verify", "obj", f"Is there a {color} {shape}?", answer))
    for thing in things:
        if sum(other.shape == thing.shape for other in things) == 1:
            found.append(("query", "attr", f"What color is the {thing.shape}?", thing.color))
            others = [color for color in COLORS if color != thing.color]
            both = [thing.color, chance.choice(others)]
            chance.shuffle(both)
            found.append(("choose", "attr", f"Is the {thing.shape} {both[0]} or {both[1]}?", thing.color))
        if sum(other.color == thing.color for other in things) == 1:
            found.append(("query", "cat", f"Which shape is {thing.color}?", thing.shape))
    for a, b in combinations(things, 2):
        left = "yes" if a.x < b.x else "no"
        found.append(("verify", "rel", f"Is the {a} to the left of the {b}?", left))
        if a.shape != b.shape:
            same = "yes" if a.color == b.color else "no"
            found.append(("compare", "attr", f"Do the {a.shape} and the {b.shape} have the same color?", same))
    return chance.sample(found, count) if count <= len(found) else chance.choices(found, k=count)

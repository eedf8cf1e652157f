"""A small set in GQA's format that is drawn here: colored shapes, and many questions on each picture."""

from __future__ import annotations

import json
import random
from pathlib import Path

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
_CENTERS = [(x, y) for y in (120, 360) for x in (110, 320, 530)]
_RADIUS = 75


def draw_gqa(folder: Path, *, images: int, questions: int = 20, seed: int = 0) -> None:
    """Write ``testdev_balanced_questions.json`` and ``images/``; equal arguments give equal files."""
    chance = random.Random(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    found = {}
    for i in range(images):
        kinds = chance.sample([(color, shape) for color in COLORS for shape in SHAPES], chance.randint(3, 5))
        _picture(kinds, chance).save(folder / "images" / f"d{i:05d}.jpg", quality=90)
        for j, (structural, semantic, question, answer) in enumerate(_questions(kinds, questions, chance)):
            found[f"{i:05d}{j:03d}"] = {
                "imageId": f"d{i:05d}",
                "question": question,
                "answer": answer,
                "isBalanced": True,
                "types": {"structural": structural, "semantic": semantic, "detailed": structural},
            }
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(found), encoding="utf-8")


def _picture(kinds: list[tuple[str, str]], chance: random.Random) -> Image.Image:
    picture = Image.new("RGB", SIZE, (244, 242, 236))
    pen = ImageDraw.Draw(picture)
    for (color, shape), (x, y) in zip(kinds, chance.sample(_CENTERS, len(kinds)), strict=True):
        box, fill = (x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS), COLORS[color]
        if shape == "circle":
            pen.ellipse(box, fill=fill)
        elif shape == "square":
            pen.rectangle(box, fill=fill)
        else:
            pen.polygon([(x, box[1]), box[2:], (box[0], box[3])], fill=fill)
    return picture


def _questions(kinds: list[tuple[str, str]], count: int, chance: random.Random) -> list[tuple[str, str, str, str]]:
    """Structural and semantic type, question, answer: ``count`` of all that can be asked, some twice if need be."""
    found = [("query", "global", "How many shapes are there in the picture?", str(len(kinds)))]
    for color in COLORS:
        for shape in SHAPES:
            there = "yes" if (color, shape) in kinds else "no"
            found.append(("verify", "obj", f"Is there a {color} {shape}?", there))
    for color, shape in kinds:
        if sum(other == shape for _, other in kinds) == 1:
            found.append(("query", "attr", f"What color is the {shape}?", color))
        if sum(other == color for other, _ in kinds) == 1:
            found.append(("query", "cat", f"Which shape is {color}?", shape))
    return chance.sample(found, count) if count <= len(found) else chance.choices(found, k=count)

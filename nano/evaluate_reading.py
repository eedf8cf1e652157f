"""Questions about drawn signs, receipts, book covers and slips, whose words a library reads (extra ``ocr``)."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from mobillama_v.assistant import Assistant
from nano import reading
from nano.evaluate_photos import Score, normalized

_SEED, _SIZE, _MARGIN = 2024, (480, 360), 24
_COLORS = (("white", "black"), ("navy", "white"), ("darkgreen", "ivory"), ("gold", "black"), ("ivory", "darkred"))


def draw(tokens: list[str], rng: random.Random) -> Image.Image:
    """A page [360,480] with its tokens in rows, centered or from the left."""
    paper, ink = rng.choice(_COLORS)
    picture = Image.new("RGB", _SIZE, paper)
    pen, size = ImageDraw.Draw(picture), 56
    while len(rows := _rows(pen, tokens, size)) * size * 1.4 > _SIZE[1] - 2 * _MARGIN:
        size -= 4
    left = rng.random() < 0.5
    for i, row in enumerate(rows):
        start = _MARGIN if left else (_SIZE[0] - pen.textlength(row, font_size=size)) / 2
        pen.text((start, _MARGIN + i * size * 1.4), row, fill=ink, font_size=size)
    return picture


def _rows(pen: ImageDraw.ImageDraw, tokens: list[str], size: int) -> list[str]:
    rows = [tokens[0]]
    for token in tokens[1:]:
        longer = f"{rows[-1]} {token}"
        if pen.textlength(longer, font_size=size) <= _SIZE[0] - 2 * _MARGIN:
            rows[-1] = longer
        else:
            rows.append(token)
    return rows


def read_pages(assistant: Assistant, count: int) -> Score:
    """Exact answers to one question about each of ``count`` pages; the assistant has a reader."""
    rng, score = random.Random(_SEED), Score("pages")
    while len(score.answers) < count:
        tokens, asked = reading.page(rng)
        if tokens:
            question, wanted = rng.choice(asked)
            answer = assistant.ask([draw(tokens, rng)], question).text
            score.add(answer, normalized(answer) == normalized(wanted))
    return score

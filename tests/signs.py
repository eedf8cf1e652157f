"""Drawn signs, for tests that read them."""

from __future__ import annotations

from PIL import Image

from nano import scenes


def sign(*words: tuple[str, scenes.PixelBox]) -> Image.Image:
    """White words on blue, each in its box of a picture of 224 x 224."""
    things = [scenes.Thing("word", "text", "white", "large", box, text) for text, box in words]
    return scenes.draw(scenes.Scene(tuple(things), "blue", seed=5))

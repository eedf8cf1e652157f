"""One-sentence captions of scenes, the prompts that ask for them, and structured words."""

from __future__ import annotations

import random

from nano.lexicon import text_kind
from nano.phrases import DESCRIBE_PROMPTS
from nano.scenes import SIDE, Scene, Thing, clear_size, nearest_region

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


def caption(scene: Scene) -> str:
    """What the picture shows, in one sentence: words first, then the shapes in reading order."""
    shapes = [
        f"{_noun_phrase(thing)} {place_phrase(nearest_region(thing))}"
        for thing in sorted(scene.shapes, key=reading_order)
    ]
    ground = f"on {article(scene.background)} {scene.background} background"
    if scene.words:
        return f"{_words_phrase(scene)} {ground}{', with ' + _listed(shapes) if shapes else ''}."
    if len(shapes) == 1:
        return f"A drawing of {shapes[0]}, {ground}."
    return f"A drawing with {_NUMBERS[len(shapes)]} shapes {ground}: {_listed(shapes)}."


def structured_words(scene: Scene) -> str:
    """What is where, in the bare words that the hybrid tower tells a picture in.

    ``drawing white. large red heart left. NO5 black text bottom.``: shapes in reading order, then words from the top.
    A decoder that has learnt to answer from them finds the same words in pictures.
    """
    told = [f"drawing {scene.background}"]
    for thing in sorted(scene.shapes, key=reading_order):
        words = (clear_size(thing), thing.color, thing.shape, nearest_region(thing))
        told.append(" ".join(word for word in words if word))
    for word in sorted(scene.words, key=reading_order):
        letters = word.text if word.text == word.text.upper() else " ".join(word.text)
        told.append(f"{letters} {word.color} text {nearest_region(word)}")
    return " ".join(f"{each}." for each in told)


def describe(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A prompt from :data:`DESCRIBE_PROMPTS` and the scene's caption; the first prompt is by far the most frequent."""
    prompt = DESCRIBE_PROMPTS[0] if rng.random() < 0.3 else rng.choice(DESCRIBE_PROMPTS)
    return prompt, caption(scene)


def _noun_phrase(thing: Thing) -> str:
    words = [word for word in (clear_size(thing), thing.color, thing.shape) if word]
    return f"{article(words[0])} {' '.join(words)}"


def _words_phrase(scene: Scene) -> str:
    words = sorted(scene.words, key=reading_order)
    kinds = {text_kind(word.text) for word in words}
    colors = {word.color for word in words}
    kind = kinds.pop() if len(kinds) == 1 else "word"
    name = "letters" if kind == "letters" else kind + ("s" if len(words) > 1 else "")
    if len(colors) == 1:
        return f"The {name} {_listed([word.text for word in words])} in {words[0].color}"
    return f"The {name} {_listed([f'{word.text} in {word.color}' for word in words])}"


def reading_order(thing: Thing) -> tuple[int, float]:
    """Sort key of things: by thirds of the picture from the top, then from the left."""
    x, y = thing.center
    return int(y * 3 / SIDE), x


def place_phrase(name: str) -> str:
    """A region's name as it follows a verb: ``at the top left``, ``on the right``, ``in the center``."""
    if name == "center":
        return "in the center"
    return f"on the {name}" if name in ("left", "right") else f"at the {name}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def article(word: str) -> str:
    """The indefinite article that goes before ``word``."""
    if word.startswith(("unicycle", "hour")):  # by sound, not by letter
        return "an" if word[0] == "h" else "a"
    return "an" if word[0] in "aeiou" else "a"

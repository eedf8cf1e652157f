"""Photographs as training pictures: crops, and conversations that follow from what the stem's classifier sees.

The photographs are the user's own folder; no label of theirs is used. A crop's answers are pseudo-labels (Lee
2013): what the stem's class head says with enough confidence.
"""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mobillama_v.images import find_images, load_image
from nano import classes
from nano.captions import article
from nano.figures import COLORS
from nano.phrases import DESCRIBE_PROMPTS, SINGLE_WORD_SUFFIX

SIDE = 224
SURE, UNSURE = 0.5, 0.15
"""Probabilities from which the likeliest class is named alone, and below which it is not named at all."""
HELD_OUT_EVERY = 5
CROPS = 5

WHAT = (
    "What is this?",
    "What is the main thing in the picture?",
    "What object is shown in the image?",
    "What can be seen in the photo?",
    "Name the main object.",
    "What is in the photo?",
    "What is the subject of this picture?",
)
WHAT_ANIMAL = ("What animal is this?", "Which animal is in the picture?", "What animal can you see?")
WHAT_KIND = ("What kind of thing is this?", "What type of thing is in the picture?", "What kind of thing is shown?")
KIND_OF_ANIMAL = ("What kind of animal is this?", "What type of animal is it?", "What kind of animal is in the image?")
IS_THERE = (
    "Is there {a} {kind} in the picture?",
    "Is there {a} {kind} in the image?",
    "Do you see {a} {kind}?",
    "Does the picture show {a} {kind}?",
    "Can you see {a} {kind}?",
    "Is this {a} {kind}?",
)
IS_ANIMAL = ("Is this an animal?", "Is there an animal in the picture?", "Does the image show an animal?")
MEDIUM = (
    "Is this a photo or a drawing?",
    "Is this a drawing or a photo?",
    "Is the image a photo or a drawing?",
    "What kind of picture is this, a photo or a drawing?",
)
MAIN_COLOR = ("What is the main color of the picture?", "What color is most of the image?", "Which color is dominant?")

_PLAIN_KINDS = frozenset(("person", "landscape", "food", "drink"))  # "a kind of person" is nothing that one says


def split(folder: Path) -> tuple[list[Path], list[Path]]:
    """The photographs of a folder, every :data:`HELD_OUT_EVERY`-th one (by name) kept out of training.

    Returns:
        Those to train on, and those held out.
    """
    paths = find_images(folder)
    held_out = paths[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    return [path for path in paths if path not in set(held_out)], held_out


def write_crops(paths: list[Path], out_dir: Path, *, seed: int) -> list[str]:
    """Write each photograph and :data:`CROPS` random crops of it, 224 x 224; returns their paths in ``out_dir``."""
    (out_dir / "images" / "photos").mkdir(parents=True, exist_ok=True)
    written = []
    for path in paths:
        image = load_image(path)
        rng = random.Random(f"photo:{seed}:{path.name}")
        for number in range(CROPS + 1):
            name = f"images/photos/{path.stem}-{number}.jpg"
            crop = image if number == 0 else _random_crop(image, rng)
            crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(out_dir / name, quality=90)
            written.append(name)
    return written


def _random_crop(image: Image.Image, rng: random.Random) -> Image.Image:
    share, ratio = rng.uniform(0.35, 1.0), rng.uniform(0.75, 1.33)
    width = min(image.width, round((image.width * image.height * share * ratio) ** 0.5))
    height = min(image.height, round((image.width * image.height * share / ratio) ** 0.5))
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    crop = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


def permuted(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same confidences given to other classes, [1000].

    With it the decoder learns to read the class part for every class, also those that no training photograph shows.
    """
    return probabilities[rng.permutation(len(probabilities))]


def description(probabilities: np.ndarray) -> str:
    """One sentence about a photograph with these class probabilities [1000]."""
    first, second = (int(i) for i in np.argsort(-probabilities, kind="stable")[:2])
    sure, kind = probabilities[first], classes.kind(first)
    if sure >= SURE:
        more = (
            f", a kind of {kind.removeprefix('piece of ')}"
            if kind and kind not in _PLAIN_KINDS and kind != classes.name(first)
            else ""
        )
        return f"A photo of {classes.with_article(first)}{more}."
    likeliest, mass = _likeliest_kind(probabilities)
    if sure >= UNSURE:
        either = f"{classes.with_article(first)} or {classes.with_article(second)}"
        if likeliest and mass >= SURE:
            return f"A photo of {article(likeliest)} {likeliest}, perhaps {either}."
        return f"A photo, perhaps of {either}."
    if likeliest and mass >= SURE:
        return f"A photo of {article(likeliest)} {likeliest}."
    return "A photo of something that I cannot name."


def _likeliest_kind(probabilities: np.ndarray) -> tuple[str | None, float]:
    masses: dict[str, float] = {}
    for index in np.flatnonzero(probabilities > 0.01):
        kind = classes.kind(int(index))
        if kind:
            masses[kind] = masses.get(kind, 0.0) + float(probabilities[index])
    return max(masses.items(), key=lambda item: item[1]) if masses else (None, 0.0)


def conversation(probabilities: np.ndarray, color: str | None, rng: random.Random) -> list[tuple[str, str]]:
    """Questions and answers about a photograph, in random order."""
    turns = [(DESCRIBE_PROMPTS[0] if rng.random() < 0.5 else rng.choice(DESCRIBE_PROMPTS), description(probabilities))]
    turns += class_turns(probabilities, rng)
    turns.append((rng.choice(MEDIUM), "photo"))
    if color:
        turns.append((rng.choice(MAIN_COLOR), color))
    rng.shuffle(turns)
    return [(_vary(question, rng), answer) for question, answer in turns]


def class_turns(probabilities: np.ndarray, rng: random.Random) -> list[tuple[str, str]]:
    """What a photograph with class probabilities [1000] shows, and whether some class or kind is there."""
    turns, first = [], int(probabilities.argmax())
    kind, mass = _likeliest_kind(probabilities)
    if probabilities[first] >= SURE:
        turns += _named_turns(first, rng)
    if mass >= SURE or probabilities[first] >= SURE:
        turns += _kind_turns(kind if mass >= SURE else classes.kind(first), rng)
    return turns


def _named_turns(index: int, rng: random.Random) -> list[tuple[str, str]]:
    name, kind = classes.name(index), classes.kind(index)
    asked = [(rng.choice(WHAT), name)]
    if kind in classes.ANIMALS:
        asked.append((rng.choice(WHAT_ANIMAL), name))
    near = [i for i in classes.of_kind(kind) if classes.name(i) != name] if kind else []
    other = rng.choice(near) if near and rng.random() < 0.5 else rng.randrange(1000)
    for each in dict.fromkeys((name, classes.name(other))):  # yes and no equally often
        question = rng.choice(IS_THERE).format(a=article(each.lower()), kind=each)
        asked.append((question, "yes" if each == name else "no"))
    return asked


def _kind_turns(kind: str | None, rng: random.Random) -> list[tuple[str, str]]:
    animal = kind in classes.ANIMALS
    turns = [(rng.choice(IS_ANIMAL), "yes" if animal else "no")] if rng.random() < 0.4 else []
    if kind:
        if rng.random() < 0.6:
            turns.append((rng.choice(KIND_OF_ANIMAL if animal and rng.random() < 0.6 else WHAT_KIND), kind))
        turns.append((rng.choice(IS_THERE).format(a=article(kind), kind=kind), "yes"))
    wrong = rng.choice([each for each in classes.kinds() if each != kind and each != "mammal"])
    return [*turns, (rng.choice(IS_THERE).format(a=article(wrong), kind=wrong), "no")]


def likely(index: int, rng: random.Random) -> np.ndarray:
    """Class probabilities [1000] as the stem's classifier might give them to a picture of class ``index``."""
    probabilities = np.zeros(1000, dtype=np.float32)
    first = rng.choice((rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.0), rng.uniform(0.1, 0.5)))
    kind = classes.kind(index)
    near = classes.of_kind(kind) if kind else ()
    others = [rng.choice(near) for _ in range(3)] if near else []
    others += [rng.randrange(1000) for _ in range(27)]
    shares = np.random.default_rng(rng.getrandbits(32)).dirichlet(np.geomspace(2, 0.02, len(others)))
    np.add.at(probabilities, others, (1 - first) * shares)
    probabilities[index] += first
    return probabilities


def imagined(index: int, rng: random.Random) -> dict[str, Any]:
    """A conversation about a photograph that nobody took, of class ``index``, told in words before its first turn."""
    probabilities = likely(index, rng)
    color = rng.choice(tuple(COLORS))
    record = _record(f"imagined-{index:03d}", conversation(probabilities, color, rng))
    return in_words(record, structured_words(probabilities, color))


def structured_words(probabilities: np.ndarray, color: str) -> str:
    """What the tower tells of a photograph with class probabilities [1000], and its main color.

    ``photo sure tench. goldfish. fish. red.``: how sure the likeliest class is, the two likeliest, and their kind where
    one has half of the probability.
    """
    first, second = (int(i) for i in np.argsort(-probabilities, kind="stable")[:2])
    share = probabilities[first]
    how = "sure" if share >= SURE else "perhaps" if share >= UNSURE else "hardly"
    kind, mass = _likeliest_kind(probabilities)
    told = [f"photo {how} {classes.name(first)}", classes.name(second)]
    told += [kind] if kind and mass >= SURE else []
    return " ".join(f"{each}." for each in (*told, color))


def in_words(record: dict[str, Any], words: str) -> dict[str, Any]:
    """A record whose picture is replaced by words about it."""
    turns = [dict(turn) for turn in record["conversations"]]
    turns[0]["value"] = f"{words}\n{turns[0]['value'].removeprefix('<image>').lstrip()}"
    return {"id": record["id"], "conversations": turns}


def _vary(question: str, rng: random.Random) -> str:
    if rng.random() < 0.1:
        question = question.lower()
    return question + SINGLE_WORD_SUFFIX if rng.random() < 0.15 and not question.startswith("Describe") else question


_PALETTE = np.array([rgb for shades in COLORS.values() for rgb in shades], dtype=np.float32)
_PALETTE_NAMES = [name for name, shades in COLORS.items() for _ in shades]


def main_color(image: Image.Image) -> str | None:
    """The color name of most of a picture, or ``None`` where no name covers half of it."""
    pixels = np.asarray(image.convert("RGB").resize((24, 24), Image.Resampling.BOX), dtype=np.float32).reshape(-1, 3)
    nearest = ((pixels[:, None] - _PALETTE) ** 2).sum(-1).argmin(1)
    names, counts = np.unique([_PALETTE_NAMES[i] for i in nearest], return_counts=True)
    return str(names[counts.argmax()]) if counts.max() >= 0.5 * len(pixels) else None


def records(
    colors: dict[str, str | None], probabilities: np.ndarray, *, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, np.ndarray]]:
    """LLaVA records of N pictures, given with their main colors, and class probabilities [N,1000].

    Each picture gives a second record under the name ``<image>#permuted``, whose class part is to be made of the third
    result's probabilities.

    Returns:
        Conversations, captions, and the permuted probabilities by name.
    """
    told, captions, swapped = [], [], {}
    for (image, color), row in zip(colors.items(), probabilities, strict=True):
        rng = random.Random(f"photo:{seed}:{image}")
        swapped[f"{image}#permuted"] = permuted(row, np.random.default_rng(zlib.crc32(image.encode()) + seed))
        for name, classed in ((image, row), (f"{image}#permuted", swapped[f"{image}#permuted"])):
            told.append(_record(name, conversation(classed, color, rng)))
            captions.append(_record(name, [("", description(classed))]))
    return told, captions, swapped


def namings(
    colors: dict[str, str | None], *, times: int, seed: int
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Conversations that name every class ``times`` times, over pictures of something else, given with their colors.

    The photographs show few of the classes, and a name that was never said is not copied well.

    Returns:
        LLaVA records of ``<image>#named<number>``, and the probabilities of which their class part is to be made.
    """
    told, swapped, images = [], {}, list(colors)
    for number in range(times * 1000):
        rng = random.Random(f"named:{seed}:{number}")
        image = rng.choice(images)
        name, row = f"{image}#named{number}", likely(number % 1000, rng)
        told.append(_record(name, conversation(row, colors[image], rng)))
        swapped[name] = row
    return told, swapped


def _record(image: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    conversation = []
    for i, (question, answer) in enumerate(turns):
        lead = "" if i else "<image>\n" if question else "<image>"
        conversation += [{"from": "human", "value": lead + question}, {"from": "gpt", "value": answer}]
    return {"id": Path(image).stem, "image": image, "conversations": conversation}

"""How well the embedded model does on what it was not trained on: the figures of its model card."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobillama_v.assistant import Assistant
from mobillama_v.generate import Sampling
from mobillama_v.reply import EncodedImage
from nano import classes, easyvqa, photos
from nano.build_scenes import write_questions

_BATCH = 64
_SHORT = Sampling(max_new_tokens=24)
HELD_OUT_SEED = 11
"""Seed of the held-out questions of the published figures."""


@dataclass
class Tally:
    """Right answers of each family, and the wrong ones."""

    right: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    wrong: list[dict[str, Any]] = field(default_factory=list)

    def accuracy(self, families: Iterable[str] | None = None) -> float:
        """Share of right answers over some families, or all."""
        chosen = list(self.asked if families is None else families)
        return sum(self.right[f] for f in chosen) / max(1, sum(self.asked[f] for f in chosen))


def normalized(answer: str) -> str:
    """As GQA compares answers: lower case, no final period."""
    return answer.strip().rstrip(".").lower()


def judge(assistant: Assistant, questions: list[dict[str, Any]], root: Path, say: Callable[[str], None]) -> Tally:
    """Ask every question (``image``, ``text``, ``answer``, ``family``) and compare the answer exactly."""
    tally, seen = Tally(), _Seen(assistant, root)
    ordered = sorted(questions, key=lambda each: each["image"])
    for first in range(0, len(ordered), _BATCH):
        batch = ordered[first : first + _BATCH]
        replies = assistant.ask_batch([([seen(each["image"])], each["text"]) for each in batch], _SHORT)
        for each, reply in zip(batch, replies, strict=True):
            tally.asked[each["family"]] += 1
            if normalized(reply.text) == normalized(each["answer"]):
                tally.right[each["family"]] += 1
            else:
                tally.wrong.append({**each, "given": reply.text})
        if first // _BATCH % 20 == 19:
            say(f"{first + len(batch):,} of {len(ordered):,} questions, {100 * tally.accuracy():.1f} % right")
    return tally


class _Seen:
    """Encodes the pictures of ordered questions once each."""

    def __init__(self, assistant: Assistant, root: Path) -> None:
        self._assistant, self._root = assistant, root
        self._last: tuple[str, EncodedImage] | None = None

    def __call__(self, image: str) -> EncodedImage:
        if self._last is None or self._last[0] != image:
            self._last = image, self._assistant.encode_image(self._root / image)
        return self._last[1]


def read_questions(path: Path) -> list[dict[str, Any]]:
    """Held-out questions, a JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def held_out(assistant: Assistant, *, count: int, say: Callable[[str], None]) -> Tally:
    """The generator's held-out questions: drawn now, from a seed and under a name that no training picture has."""
    with tempfile.TemporaryDirectory() as folder:
        write_questions(Path(folder), name="held-out", count=count, seed=HELD_OUT_SEED)
        return judge(assistant, read_questions(Path(folder) / "held-out-questions.jsonl"), Path(folder), say)


def easy_vqa(assistant: Assistant, *, say: Callable[[str], None]) -> Tally:
    """easy-VQA's own test split, all 9,673 questions as they are."""
    with tempfile.TemporaryDirectory() as folder:
        easyvqa.convert(Path(folder))
        return judge(assistant, read_questions(Path(folder) / "easyvqa-test-questions.jsonl"), Path(folder), say)


@dataclass(frozen=True)
class Named:
    """A photograph that was not trained on: what the stem's classifier says, and what the model answers."""

    photo: Path
    known_as: str
    probability: float
    answer: str

    @property
    def named(self) -> bool:
        """Whether the answer holds the classifier's name for it."""
        return self.known_as.lower() in self.answer.lower()


def name_photos(assistant: Assistant, paths: list[Path], *, sure: float = photos.SURE) -> list[Named]:
    """Describe each photograph of which the stem's classifier is sure."""
    import torch

    from mobillama_v.images import load_image
    from mobillama_v.model.vision.lite0 import Lite0

    stem = assistant.network.vision_tower.visual.trunk.patch_embed.stem  # type: ignore[union-attr]
    assert isinstance(stem, Lite0)
    found = []
    for path in paths:
        picture = load_image(path, target=assistant.spec.image.size)
        with torch.inference_mode():
            pixels = torch.from_numpy(assistant.spec.image(picture))[None]
            probability, index = stem(pixels)[-1].softmax(-1)[0].max(0)
        if probability > sure:
            answer = assistant.ask([picture], "Describe the image.").text
            found.append(Named(path, classes.name(int(index)), float(probability), answer))
    return found

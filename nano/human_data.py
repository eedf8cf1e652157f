"""What people said about photographs: Flickr8k's captions and DAQUAR's questions, from folders of the user's own.

- Flickr8k (Hodosh, Young, Hockenmaier, JAIR 47, 2013): ``images/`` and ``captions.jsonl``, a line a photograph:
  ``image``, ``split`` (``train``, ``dev``, or anything else) and its ``captions``.
- DAQUAR (Malinowski, Fritz, NIPS 2014): ``images/`` and ``qa.jsonl``, a line a question: ``image``, ``question`` and
  ``answer`` (several things: separated by commas).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama_v.errors import DataError
from nano.caption_qa import tidy

KEPT_OUT_EVERY = 5
"""Every fifth of DAQUAR's photographs, by name, is kept out of training."""


@dataclass(frozen=True)
class Captioned:
    """A photograph with its captions, as tidy sentences."""

    image: str
    split: str
    captions: tuple[str, ...]

    @property
    def sided(self) -> bool:
        """Whether a caption says left or right, so that its mirror image would make it false."""
        return any(word in caption.lower().split() for caption in self.captions for word in ("left", "right"))


@dataclass(frozen=True)
class Asked:
    """A question that a person asked about a photograph, and the answer."""

    image: str
    question: str
    answer: str


def read_captions(folder: Path) -> list[Captioned]:
    """Flickr8k's photographs.

    Raises:
        DataError: no such file, or a line of another form.
    """
    rows = _lines(folder / "captions.jsonl", {"image": str, "split": str, "captions": list})
    return [Captioned(row["image"], row["split"], tuple(tidy(text) for text in row["captions"])) for row in rows]


def read_questions(folder: Path) -> tuple[list[Asked], list[Asked]]:
    """DAQUAR's questions to train on, and those about photographs that are kept out.

    Raises:
        DataError: no such file, or a line of another form.
    """
    rows = _lines(folder / "qa.jsonl", {"image": str, "question": str, "answer": str})
    kept_out = set(sorted({row["image"] for row in rows})[KEPT_OUT_EVERY - 1 :: KEPT_OUT_EVERY])
    asked = [Asked(row["image"], row["question"], row["answer"]) for row in rows]
    return [each for each in asked if each.image not in kept_out], [each for each in asked if each.image in kept_out]


def _lines(path: Path, fields: dict[str, type]) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path} is missing; give the folder that holds it and images/.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or any(not isinstance(row.get(name), kind) for name, kind in fields.items()):
            raise DataError(f"{path}, line {number}: expected an object with {', '.join(fields)}.")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty.")
    return rows

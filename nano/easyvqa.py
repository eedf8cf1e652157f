"""Convert the public easy-VQA set (``pip install easy-vqa``) to this project's record and question formats."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from nano.captions import article
from nano.phrases import SINGLE_WORD_SUFFIX

TURNS_PER_RECORD = 8
SUFFIX_SHARE = 0.25

_COLOR_QUESTION = re.compile(r"what (?:color is|is the color of) ")
_SHAPE_OF_COLOR = re.compile(r"what is the (\w+) shape\?")
_SHAPE_QUESTION = re.compile(r"what shape ")


def convert(out_dir: Path, *, seed: int = 0) -> None:
    """Write the set below ``out_dir``: pictures under ``images/easyvqa``, and three files beside them.

    ``easyvqa-train.json`` holds all training questions, up to :data:`TURNS_PER_RECORD` of one picture in a record,
    ``easyvqa-train-captions.json`` a caption of each picture whose shape and color its questions give away, and
    ``easyvqa-test-questions.jsonl`` the test questions, unchanged.
    """
    import easy_vqa

    rng = random.Random(f"easyvqa:{seed}")
    train = _by_image(*easy_vqa.get_train_questions())
    images = _copy_images(easy_vqa.get_train_image_paths(), out_dir, "train")
    records = [record for number, asked in sorted(train.items()) for record in _records(number, images, asked, rng)]
    captions = [_caption_record(number, images[number], asked) for number, asked in sorted(train.items())]
    _write_json(out_dir / "easyvqa-train.json", records)
    _write_json(out_dir / "easyvqa-train-captions.json", [record for record in captions if record])

    images = _copy_images(easy_vqa.get_test_image_paths(), out_dir, "test")
    lines = []
    for index, (text, answer, number) in enumerate(zip(*easy_vqa.get_test_questions(), strict=True)):
        identity = f"easyvqa-test-{index:05d}"
        line = {"question_id": identity, "image": images[number], "text": text, "answer": answer, "family": "easy-vqa"}
        lines.append(json.dumps(line) + "\n")
    (out_dir / "easyvqa-test-questions.jsonl").write_text("".join(lines), encoding="utf-8")


_Asked = list[tuple[str, str]]


def _by_image(texts: list[str], answers: list[str], numbers: list[int]) -> dict[int, _Asked]:
    asked: dict[int, _Asked] = defaultdict(list)
    for text, answer, number in zip(texts, answers, numbers, strict=True):
        asked[number].append((text, answer))
    return asked


def _copy_images(paths: dict[int, str], out_dir: Path, split: str) -> dict[int, str]:
    (out_dir / "images" / "easyvqa" / split).mkdir(parents=True, exist_ok=True)
    copies = {number: f"images/easyvqa/{split}/{number}.png" for number in paths}
    for number, path in paths.items():
        shutil.copyfile(path, out_dir / copies[number])
    return copies


def _records(number: int, images: dict[int, str], asked: _Asked, rng: random.Random) -> list[dict[str, Any]]:
    order = rng.sample(asked, len(asked))
    records = []
    for start in range(0, len(order), TURNS_PER_RECORD):
        conversation: list[dict[str, str]] = []
        for text, answer in order[start : start + TURNS_PER_RECORD]:
            question = text + SINGLE_WORD_SUFFIX if rng.random() < SUFFIX_SHARE else text
            conversation.append({"from": "human", "value": question if conversation else f"<image>\n{question}"})
            conversation.append({"from": "gpt", "value": answer})
        records.append(
            {
                "id": f"easyvqa-{number:05d}-{start // TURNS_PER_RECORD}",
                "image": images[number],
                "conversations": conversation,
                "families": ["easy-vqa"] * (len(conversation) // 2),
            }
        )
    return records


def _caption_record(number: int, image: str, asked: _Asked) -> dict[str, Any] | None:
    shape, color = shape_and_color(asked)
    if not (shape and color):
        return None
    text = f"A drawing of {article(color)} {color} {shape}."
    conversation = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]
    return {"id": f"easyvqa-caption-{number:05d}", "image": image, "conversations": conversation}


def shape_and_color(asked: list[tuple[str, str]]) -> tuple[str | None, str | None]:
    """What the open questions of one picture, each with its answer, tell about its one shape."""
    shape = color = None
    for question, answer in asked:
        if _COLOR_QUESTION.match(question):
            color = answer
        elif named := _SHAPE_OF_COLOR.match(question):
            shape, color = answer, named.group(1)
        elif _SHAPE_QUESTION.match(question):
            shape = answer
    return shape, color


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

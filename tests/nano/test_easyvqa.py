"""The easy-VQA converter keeps every question and answer of the package."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import easy_vqa
import pytest

from nano.easyvqa import TURNS_PER_RECORD, convert
from nano.phrases import SINGLE_WORD_SUFFIX


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("easyvqa")
    convert(out)
    return out


def test_every_training_question_is_kept_once(folder: Path) -> None:
    records = json.loads((folder / "easyvqa-train.json").read_text())
    kept: Counter[tuple[str, str, int]] = Counter()
    for record in records:
        turns = [turn["value"] for turn in record["conversations"]]
        assert turns[0].startswith("<image>\n") and len(turns) <= 2 * TURNS_PER_RECORD
        number = int(Path(record["image"]).stem)
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            kept[question.removeprefix("<image>\n").removesuffix(SINGLE_WORD_SUFFIX), answer, number] += 1
    assert kept == Counter(zip(*easy_vqa.get_train_questions(), strict=True))


def test_test_questions_are_unchanged_and_their_images_are_there(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "easyvqa-test-questions.jsonl").read_text().splitlines()]
    asked = Counter((line["text"], line["answer"], int(Path(line["image"]).stem)) for line in lines)
    assert asked == Counter(zip(*easy_vqa.get_test_questions(), strict=True))
    assert len({line["question_id"] for line in lines}) == len(lines)
    assert all((folder / line["image"]).is_file() for line in lines)


def test_captions_agree_with_the_questions(folder: Path) -> None:
    captions = json.loads((folder / "easyvqa-train-captions.json").read_text())
    assert len(captions) > 1000
    text = {int(Path(record["image"]).stem): record["conversations"][1]["value"] for record in captions}
    for question, answer, number in zip(*easy_vqa.get_train_questions(), strict=True):
        if question.startswith("what") and number in text:
            assert answer in text[number], (question, answer, text[number])

"""Drawn scenes: repeatable, in bounds, and described by labels and answers that are true."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from nano import scenes
from nano.build_scenes import DEFAULT_STYLES, write_split
from nano.grid import CELLS, LABEL_NAMES, cell_labels
from nano.lexicon import HELD_OUT_WORDS, TRAIN_WORDS
from nano.questions import questions


def some_scenes(count: int = 120) -> list[scenes.Scene]:
    return [scenes.sample_scene(random.Random(i), scenes.STYLES[i % len(scenes.STYLES)]) for i in range(count)]


def test_things_lie_inside_and_apart() -> None:
    for scene in some_scenes():
        for i, thing in enumerate(scene.things):
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= scenes.SIDE and 0 <= top < bottom <= scenes.SIDE
            assert thing.color != scene.background
            for other in scene.things[:i]:
                a, b = thing.box, other.box
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_scene_draws_the_same_twice_and_not_like_another() -> None:
    pictures = [np.asarray(scenes.draw(scene)) for scene in some_scenes(6)]
    again = [np.asarray(scenes.draw(scene)) for scene in some_scenes(6)]
    assert all((a == b).all() for a, b in zip(pictures, again, strict=True))
    assert pictures[0].shape == (scenes.SIDE, scenes.SIDE, 3)
    assert (pictures[0] != pictures[1]).any()


def test_cell_labels_place_every_thing() -> None:
    for scene in some_scenes(40):
        labels = cell_labels(scene)
        assert labels.shape == (CELLS, CELLS, len(LABEL_NAMES)) and set(np.unique(labels)) <= {0, 1}
        assert labels[..., LABEL_NAMES.index("center")].sum() == len(scene.things)
        assert labels[..., LABEL_NAMES.index(f"background:{scene.background}")].all()
        for thing in scene.things:
            row, column = int((thing.box[1] + thing.box[3]) / 2 // 16), int((thing.box[0] + thing.box[2]) / 2 // 16)
            near = labels[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            assert near[..., LABEL_NAMES.index(f"color:{thing.color}")].any()


def test_counts_colors_and_reading_answer_the_scene() -> None:
    checked = dict.fromkeys(("count", "reading", "background"), 0)
    for i, scene in enumerate(some_scenes(200)):
        for qa in questions(scene, random.Random(i)):
            if qa.family == "background":
                assert qa.answer == scene.background
            elif qa.family == "count":
                assert 0 <= int(qa.answer) <= len(scene.things)
            elif qa.family == "reading" and "letter" not in qa.question.lower():
                drawn = [thing.text for thing in scene.things if thing.kind == "word"]
                assert any(text in qa.answer for text in drawn)
            if qa.family in checked:
                checked[qa.family] += 1
    assert all(number > 20 for number in checked.values()), checked


def test_yes_and_no_are_balanced() -> None:
    answers = [qa.answer for i, s in enumerate(some_scenes(400)) for qa in questions(s, random.Random(i))]
    yes, no = answers.count("yes"), answers.count("no")
    assert yes + no > 300 and 0.42 < yes / (yes + no) < 0.58  # standard error below 0.03


def test_held_out_words_are_not_for_training() -> None:
    assert not set(HELD_OUT_WORDS) & set(TRAIN_WORDS)
    drawn = {t.text.upper() for s in some_scenes(400) for t in s.things if t.kind == "word"}
    assert drawn and not drawn & set(HELD_OUT_WORDS)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_split_is_the_same_for_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    for folder, processes in (("one", 1), ("other", workers)):
        write_split(tmp_path / folder, name="s", count=6, seed=4, styles=DEFAULT_STYLES, workers=processes)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == 6 + 3
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file
    for record in json.loads((tmp_path / "one" / "s.json").read_text()):
        assert (tmp_path / "one" / record["image"]).is_file()
        speakers = [turn["from"] for turn in record["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        assert record["conversations"][0]["value"].startswith("<image>\n")

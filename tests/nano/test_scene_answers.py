"""What is asked about a drawn scene is true: answers are derived again here, from hand-made scenes."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nano import build_scenes, figures, grid, lexicon, scenes
from nano import questions as asking
from nano.scenes import Scene, Thing

SHAPE = re.compile(rf"\b({'|'.join(figures.SHAPES)})(?:e?s)?\b")
COLOR = re.compile(rf"\b({'|'.join(scenes.COLOR_NAMES)})\b")


def shape(name: str, color: str, box: tuple[int, int, int, int], size: str = "large") -> Thing:
    return Thing("shape", name, color, size, box)


def word(text: str, color: str, box: tuple[int, int, int, int]) -> Thing:
    return Thing("word", "text", color, "large", box, text)


RED_CIRCLE = shape("circle", "red", (8, 8, 72, 72))
BLUE_STAR = shape("star", "blue", (170, 170, 210, 210), "small")
STREET = Scene((word("STOP", "white", (20, 100, 200, 150)),), "red", 3)
PAIR = Scene((RED_CIRCLE, BLUE_STAR), "white", 7)
MIX = Scene(
    (
        RED_CIRCLE,
        shape("circle", "green", (150, 10, 214, 74)),
        shape("heart", "red", (20, 160, 60, 200), "small"),
        shape("square", "green", (95, 95, 133, 133), "small"),
    ),
    "white",
    1,
)


def asked(scene: Scene, family: str, rounds: int = 100) -> list[tuple[str, str]]:
    """Many questions of one family about a scene, their incidental variation (case, spelling, suffix) undone."""
    found = [turn for seed in range(rounds) for turn in asking.questions(scene, random.Random(seed))]
    return [(plain(turn.question), turn.answer) for turn in found if turn.family == family]


def plain(question: str) -> str:
    return question.split("\n")[0].lower().replace("colour", "color").rstrip("?.")


def fitting(scene: Scene, phrase: str) -> list[Thing]:
    """The shapes that the color and shape names in a phrase allow."""
    color, kind = COLOR.search(phrase), SHAPE.search(phrase)
    return [t for t in scene.shapes if (not color or t.color == color[1]) and (not kind or t.shape == kind[1])]


def meant(scene: Scene, phrase: str) -> Thing:
    (thing,) = fitting(scene, phrase)
    return thing


# --- questions ------------------------------------------------------------------------------------------------------


def test_colors_are_asked_only_of_what_the_question_singles_out() -> None:
    about = asked(MIX, "color")
    assert {answer for _, answer in about} == {"red", "green"}
    for question, answer in about:
        assert "circle" not in question
        assert answer == ("red" if re.search("heart|top left|bottom left", question) else "green"), question


def test_shapes_are_asked_only_by_a_color_or_place_that_one_thing_has() -> None:
    assert not [question for question, _ in asked(MIX, "shape") if COLOR.search(question)]
    assert {answer for question, answer in asked(MIX, "shape") if "shape is in the center" in question} == {"square"}
    assert {answer for question, answer in asked(PAIR, "shape") if "red" in question} == {"circle"}


def test_counts_are_those_of_the_scene() -> None:
    about = asked(MIX, "count", 300)
    assert {answer for _, answer in about} >= {"0", "1", "2", "4"}
    for question, answer in about:
        assert answer == str(len(fitting(MIX, question))), question
        assert not re.search("ring|oval|rectangle", question), "a circle or a square might be meant"


def test_positions_name_the_ninth_and_are_left_out_near_a_border() -> None:
    assert {answer for question, answer in asked(PAIR, "position") if "circle" in question} == {"top left"}
    assert not asked(Scene((shape("circle", "red", (40, 8, 104, 72)),), "white", 0), "position")


def test_relations_follow_from_the_boxes() -> None:
    rng = random.Random(9)
    for scene in (scenes.sample_scene(rng, "few") for _ in range(40)):
        for question, answer in asked(scene, "relation", 4):
            relation = re.search(r"\b(left|right|above|over|higher|below|under|lower)\b", question)
            assert relation
            ends = [question.split(relation[1], 1)[1], question.split(relation[1], 1)[0]]
            second = meant(scene, ends[0])
            first = meant(scene, ends[1] if answer in ("yes", "no") else answer)
            axis = 0 if relation[1] in ("left", "right") else 1
            before = first.center[axis] < second.center[axis]
            true = before if relation[1] in ("left", "above", "over", "higher") else not before
            assert true == (answer != "no"), (question, answer)


@pytest.mark.parametrize("scene", [PAIR, MIX])
@pytest.mark.parametrize("family", ["existence", "negation"])
def test_existence_and_its_negation_are_true_of_the_scene(scene: Scene, family: str) -> None:
    for question, answer in asked(scene, family, 300):
        if re.search("text|word|writing|written", question):
            assert answer == "no"
            continue
        assert COLOR.search(question) or SHAPE.search(question), question
        assert answer == ("yes" if bool(fitting(scene, question)) is (family == "existence") else "no"), question


def test_text_is_read_as_drawn() -> None:
    assert {answer for _, answer in asked(STREET, "reading")} == {"STOP", "S", "P"}
    two = Scene((word("cold", "red", (60, 20, 160, 60)), word("Soup", "blue", (60, 150, 160, 200))), "white", 0)
    answers = dict(asked(two, "reading"))
    assert answers["what is written"] == "cold Soup"
    assert answers["what is written at the top"] == "cold" and answers["what is written at the bottom"] == "Soup"
    assert answers["what is written in blue"] == "Soup"


def test_sizes_are_asked_and_compared_only_when_clear() -> None:
    about = asked(PAIR, "size")
    assert {"small", "large", "yes", "no"} < {answer for _, answer in about}
    for question, answer in about:
        if answer in ("small", "large"):
            assert answer == meant(PAIR, question).size
        elif answer in ("yes", "no"):
            assert answer == ("yes" if meant(PAIR, question.split(" than ")[0]) is RED_CIRCLE else "no")
        else:
            assert meant(PAIR, answer) is (RED_CIRCLE if re.search("bigger|larger", question) else BLUE_STAR)
    assert not asked(Scene((shape("circle", "red", (8, 8, 62, 62)),), "white", 0), "size")


def test_no_yes_no_family_can_be_guessed() -> None:
    counts: dict[str, Counter[str]] = {family: Counter() for family in asking.YES_NO_FAMILIES}
    rng, styles = random.Random(2), build_scenes.DEFAULT_STYLES
    for _ in range(1500):
        scene = scenes.sample_scene(rng, rng.choices(list(styles), list(styles.values()))[0])
        for turn in asking.questions(scene, rng):
            if turn.family in counts:
                counts[turn.family][turn.answer] += 1
    for family, answers in counts.items():
        assert 0.44 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.56, (family, answers)


def test_captions() -> None:
    assert asking.DESCRIBE_PROMPTS[0] == "Describe the image." and len(asking.DESCRIBE_PROMPTS) == 10
    number = Scene((word("42", "orange", (20, 100, 200, 150)), BLUE_STAR), "white", 0)
    assert [asking.caption(scene) for scene in (PAIR, Scene((RED_CIRCLE,), "gray", 0), STREET, number)] == [
        "A drawing with two shapes on a white background: "
        "a large red circle at the top left and a small blue star at the bottom right.",
        "A drawing of a large red circle at the top left, on a gray background.",
        "The word STOP in white on a red background.",
        "The number 42 in orange on a white background, with a small blue star at the bottom right.",
    ]


# --- drawing and labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", scenes.STYLES)
def test_a_thing_is_drawn_in_its_box_and_nowhere_else(style: str) -> None:
    rng = random.Random(4)
    for scene in (scenes.sample_scene(rng, style) for _ in range(20)):
        for index, thing in enumerate(scene.things):
            drawn = scenes.thing_mask(scene, index).getbbox()
            assert drawn and all(abs(a - b) <= 3 for a, b in zip(drawn, thing.box, strict=True)), (thing, drawn)


def test_the_named_colors_are_what_is_drawn() -> None:
    pixels = np.asarray(scenes.draw(PAIR)).astype(int)
    red, green, blue = pixels[40, 40]
    assert red > 200 and green < 60 and blue < 60
    red, green, blue = pixels[190, 190]
    assert blue > 190 and red < 70 and green < 120
    assert pixels[120, 30].min() > 190


def names_at(labels: np.ndarray, row: int, column: int) -> set[str]:
    return {grid.LABEL_NAMES[index] for index in np.flatnonzero(labels[row, column])}


def test_cell_labels_of_hand_made_scenes() -> None:
    labels = grid.cell_labels(PAIR)
    circle = {"shape:circle", "color:red", "large", "background:white"}
    assert names_at(labels, 2, 2) == circle | {"center"}
    assert names_at(labels, 2, 3) == circle
    assert names_at(labels, 0, 0) == {"background:white"}
    assert names_at(labels, 11, 11) == {"shape:star", "color:blue", "center", "background:white"}

    labels, middles = grid.cell_labels(STREET), []
    for letter in "STOP":
        rows, columns = np.nonzero(labels[..., grid.LABEL_NAMES.index(f"character:{letter}")])
        assert len(rows) == 1 and 100 <= 16 * rows[0] + 8 <= 150
        middles.append(columns.mean())
    assert middles == sorted(middles) and len(set(middles)) == 4


# --- files ----------------------------------------------------------------------------------------------------------


def test_records_are_llava_conversations_with_a_family_per_answer(tmp_path: Path) -> None:
    build_scenes.write_split(tmp_path, name="train", count=30, seed=3, styles={"few": 1, "two_words": 1})
    records = json.loads((tmp_path / "train.json").read_text())
    captions = json.loads((tmp_path / "train-captions.json").read_text())
    assert np.load(tmp_path / "train-cells.npy").shape == (30, 14, 14, len(grid.LABEL_NAMES))
    for record, caption in zip(records, captions, strict=True):
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * len(record["families"])
        assert 6 <= sum(family != "medium" for family in record["families"]) <= 8
        assert ("medium" in record["families"]) == (int(record["id"][-6:]) % 5 == 0)
        assert [turn["value"].count("<image>") for turn in turns] == [1] + [0] * (len(turns) - 1)
        assert turns[0]["value"].startswith("<image>\n") and (tmp_path / record["image"]).exists()
        assert caption["conversations"][0]["value"] == "<image>" and caption["image"] == record["image"]


def test_a_record_asks_to_read_before_a_question_quotes_the_word(tmp_path: Path) -> None:
    build_scenes.write_split(tmp_path, name="train", count=40, seed=5, styles={"two_words": 1})
    for record in json.loads((tmp_path / "train.json").read_text()):
        human = [turn["value"] for turn in record["conversations"][::2]]
        quoting = [i for i, text in enumerate(human) if re.search(r"\b(word|number|text) [A-Z0-9]", text)]
        reading = [i for i, family in enumerate(record["families"]) if family == "reading"]
        assert not quoting or max(reading, default=-1) < min(quoting)


def test_dense_questions_show_every_second_picture_by_its_structured_tokens(tmp_path: Path) -> None:
    build_scenes.write_split(tmp_path, name="made", count=40, seed=3)
    build_scenes.write_dense_questions(tmp_path, name="made", count=40, seed=3)
    told = json.loads((tmp_path / "made.json").read_text())
    dense = json.loads((tmp_path / "made-dense.json").read_text())
    for i, (record, each) in enumerate(zip(told, dense, strict=True)):
        assert each["image"] == record["image"] + ("#tokens" if i % 2 else "")
        questions, answers = ([turn["value"] for turn in each["conversations"][start::2]] for start in (0, 1))
        assert questions[0].startswith("<image>\n") and sum("<image>" in each for each in questions) == 1
        assert len({each.removeprefix("<image>\n").split("\n")[0].lower().rstrip("?.") for each in questions}) == len(
            answers
        )
        assert 4 <= len(answers) <= 15
        # A description gives everything away, so nothing follows it.
        assert not any(each.startswith(("A drawing", "The word", "The letters")) for each in answers[:-1])
        scene, _ = build_scenes.training_scene("made", 3, build_scenes.DEFAULT_STYLES, i)
        quoted = [any(word.text in each for word in scene.words) for each in questions]
        read = [any(word.text in each for word in scene.words) for each in answers]
        assert not any(any(quoted[:j]) and read[j] for j in range(len(read) - 1))
    assert sum(len(each["conversations"]) for each in dense) > 1.4 * sum(len(each["conversations"]) for each in told)


def test_retrieval_questions_are_about_pictures_of_several_things(tmp_path: Path) -> None:
    build_scenes.write_dense_questions(tmp_path, name="made", count=60, seed=3)
    records = json.loads((tmp_path / "made-retrieval.json").read_text())
    scenes = [build_scenes.training_scene("made", 3, build_scenes.DEFAULT_STYLES, i)[0] for i in range(60)]
    numbers = [int(record["id"].removeprefix("made-retrieval-")) for record in records]
    assert len(set(numbers)) == len(numbers) > 20
    assert all(len(scenes[i].things) > 1 for i in numbers)
    asked = [turn["value"] for record in records for turn in record["conversations"][::2]]
    assert not any(re.search("how many|count the", each.lower()) for each in asked)
    assert sum(bool(re.search(r"\b[Ww]here\b|part of the", each)) for each in asked) > len(records)  # of places
    places = json.loads((tmp_path / "made-places.json").read_text())
    assert places and all(record["image"].endswith("#tokens") for record in places)
    answers = {turn["value"] for record in places for turn in record["conversations"][1::2]}
    assert {each for each in answers if not each.startswith(("A drawing", "The "))} <= {
        f"{row}{column}" or "center" for row in ("top", "bottom", "") for column in (" left", " right", "")
    } | {"left", "right"}


def test_held_out_questions_have_balanced_families_and_answers(tmp_path: Path) -> None:
    build_scenes.write_questions(tmp_path, name="held", count=88, seed=0)
    lines = [json.loads(line) for line in (tmp_path / "held-questions.jsonl").read_text().splitlines()]
    assert set(Counter(line["family"] for line in lines).values()) == {8} and len(lines) == 88
    for family in ("existence", "negation"):
        assert Counter(line["answer"] for line in lines if line["family"] == family) == {"yes": 4, "no": 4}
    unseen = [line["answer"].upper() for line in lines if line["family"] == build_scenes.UNSEEN_READING]
    assert all(any(answer in known for known in lexicon.HELD_OUT_WORDS) for answer in unseen)
    assert all((tmp_path / line["image"]).exists() for line in lines)


def test_easy_vqa_open_questions_give_shape_and_color() -> None:
    from nano.easyvqa import shape_and_color

    assert shape_and_color([("what is the blue shape?", "rectangle")]) == ("rectangle", "blue")
    assert shape_and_color([("what color is the circle?", "teal"), ("is there a circle?", "yes")]) == (None, "teal")
    assert shape_and_color([("what shape is present?", "circle")]) == ("circle", None)

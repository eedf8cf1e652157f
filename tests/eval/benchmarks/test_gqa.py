from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import official
from mobillama_v.errors import ConfigError, DataError
from mobillama_v.eval.benchmarks.gqa import normalize
from mobillama_v.eval.benchmarks.registry import get

# Of official.gqa_questions(2): 0 is binary, 1 asks the color (red, green), 2 the thing; 1 and 2 entail each other.
A0, A1, A2, B0, B1, B2 = (f"20000{i}{n}" for i in (0, 1) for n in (0, 1, 2))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes.", "yes"), ("RED...", "red"), (".5", ".5"), ("red ", "red "), ("a. b.", "a. b"), ("", ""), ("...", "")],
)
def test_final_stops_and_case_go_and_nothing_else(answer: str, expected: str) -> None:
    assert normalize(answer) == expected


@given(st.text())
def test_normalizing_again_changes_nothing_but_what_lower_case_adds(answer: str) -> None:
    assert normalize(answer) == answer.rstrip(".").lower()


def test_examples(tmp_path: Path) -> None:
    examples = get("gqa").load(official.gqa(tmp_path))
    assert [each.id for each in examples] == [A0, A1, A2, B0, B1, B2]
    first = examples[1]
    assert first.prompt == "What color is the square?\nAnswer the question using a single word or phrase."
    assert first.images == (tmp_path / "images" / "n000.jpg",) and first.images[0].is_file()
    assert first.answers == ("red",)
    # "exist" ends a program without being a step of reasoning, "query: color" is one.
    assert [each.group["steps"] for each in examples[:3]] == ["1", "2", "1"]
    assert [each.group["kind"] for each in examples[:3]] == ["binary", "open", "open"]


@pytest.mark.parametrize("place", ["data", "questions"])
def test_files_one_level_down_are_found(tmp_path: Path, place: str) -> None:
    official.gqa(tmp_path / place)
    if place == "questions":
        (tmp_path / place / "images").rename(tmp_path / "images")
    assert all(each.images[0].is_file() for each in get("gqa").load(tmp_path))


def test_llavas_file_gives_the_same_prompts(tmp_path: Path) -> None:
    data = official.gqa(tmp_path)
    assert get("gqa", questions=official.llava_gqa(tmp_path / "l.jsonl")).load(data) == get("gqa").load(data)
    with pytest.raises(DataError, match=r"lacks 3 of the 6 questions"):
        get("gqa", questions=official.llava_gqa(tmp_path / "l.jsonl", images=1)).load(data)


def test_questions_without_a_group_are_a_group(tmp_path: Path) -> None:
    """GQA's ``eval.py`` takes the name "" as it takes any other; without it the distribution would be too small."""
    data = official.gqa(tmp_path)
    path = data / "testdev_balanced_questions.json"
    questions = {name: each for name, each in json.loads(path.read_text()).items() if name in (A1, B1)}
    for question in questions.values():
        question |= {"answer": "red", "groups": {"global": "", "local": ""}}
    path.write_text(json.dumps(questions))
    bench = get("gqa")
    examples = bench.load(data)
    # One group with two right "red", of which one was said: (1 - 2)^2 / 2, weighted by all questions, over 100.
    assert bench.score(examples, {A1: "red", B1: "blue"}).metrics["distribution"] == pytest.approx(0.005)
    assert bench.score(examples, {A1: "red", B1: "red"}).metrics["distribution"] == 0


def test_score(tmp_path: Path) -> None:
    bench = get("gqa")
    examples = bench.load(official.gqa(tmp_path))
    given_answers = {A0: "Yes.", A1: "Red", A2: "a square", B0: "no", B1: "blue"}
    found = bench.score(examples, given_answers)
    assert found.correct == {A0: 1, A1: 1, A2: 0, B0: 0, B1: 0, B2: 0}
    assert found.missing == (B2,)
    assert found.headline == found.metrics["accuracy"] == pytest.approx(100 / 3)
    assert found.metrics["binary"] == 50 and found.metrics["open"] == 25
    assert found.categories["structural"] == {"query": 25, "verify": 50}
    assert found.categories["semantic"] == {"attr": 50, "cat": 0}
    assert found.categories["steps"] == {"1": 25, "2": 50}
    assert list(found.categories["words"]) == ["3", "4", "5"]
    assert "validity" not in found.metrics and "consistency" not in found.metrics
    # color: red 1 right of 1 given, green 1 of 0 -> chi-square 0 + 1; shape: square 2 of 0 -> 2. Weighted by two each.
    assert found.metrics["distribution"] == pytest.approx((1 * 2 + 2 * 2) / 4 / 100)


def test_a_missing_answer_is_wrong_even_where_the_right_one_is_empty(tmp_path: Path) -> None:
    questions = official.gqa_questions(1)
    questions[A0]["answer"] = ""
    official.dump(tmp_path / "testdev_balanced_questions.json", questions)
    bench = get("gqa")
    assert bench.score(bench.load(tmp_path), {}).headline == 0


def choices() -> dict[str, dict[str, list[str]]]:
    found = {name: {"valid": ["yes", "no"], "plausible": ["yes"]} for name in (A0, B0)}
    found |= {name: {"valid": ["red", "green", "blue"], "plausible": ["red", "green"]} for name in (A1, B1)}
    return found | {name: {"valid": ["square", "circle"], "plausible": ["square"]} for name in (A2, B2)}


def test_validity_and_plausibility(tmp_path: Path) -> None:
    data = official.gqa(tmp_path)
    official.dump(data / "testdev_choices.json", choices())
    bench = get("gqa")
    answers = {A0: "No", A1: "blue", A2: "Square.", B0: "perhaps", B1: "red", B2: "table"}
    found = bench.score(bench.load(data), answers).metrics
    assert found["validity"] == pytest.approx(400 / 6)  # perhaps and table are not
    assert found["plausibility"] == pytest.approx(200 / 6)  # Square. and red
    assert bench.score(bench.load(data), {}).metrics["validity"] == 0


def test_what_two_things_share_is_judged_by_the_attributes_name(tmp_path: Path) -> None:
    questions = official.gqa_questions(1)
    questions[A2]["types"]["detailed"] = "twoCommon"
    official.dump(tmp_path / "testdev_balanced_questions.json", questions)
    official.dump(tmp_path / "testdev_choices.json", choices())
    bench = get("gqa")
    examples = bench.load(tmp_path)
    assert bench.score(examples, {A2: "color"}).metrics["validity"] == pytest.approx(100 / 3)
    assert bench.score(examples, {A2: "square"}).metrics["validity"] == 0


def test_choices_in_chunks_and_half_of_them(tmp_path: Path) -> None:
    data = official.gqa(tmp_path)
    every = list(choices().items())
    official.dump(data / "testdev_choices" / "testdev_choices_0.json", dict(every[:3]))
    with pytest.raises(DataError, match=r"choices of testdev .* lack questions"):
        get("gqa").load(data)
    official.dump(data / "testdev_choices" / "testdev_choices_1.json", dict(every[3:]))
    assert "validity" in get("gqa").score(get("gqa").load(data), {}).metrics


def test_consistency_is_over_all_questions_and_accuracy_over_the_balanced(tmp_path: Path) -> None:
    questions = official.gqa_questions(2)
    questions[A1]["entailed"] = [A1, A0, A2]
    questions[B0]["isBalanced"] = False
    official.dump(tmp_path / "testdev_all_questions.json", questions)
    bench = get("gqa", consistency=True)
    examples = bench.load(tmp_path)
    answers = {A0: "yes", A1: "red", A2: "circle", B0: "yes", B1: "green", B2: "square"}
    found = bench.score(examples, answers)
    # A1 right: A0 right, A2 not: 1/2. B1 and B2 right, each entails the other: 1 and 1. A0 entails nothing; A2 wrong.
    assert found.metrics["consistency"] == pytest.approx(100 * (0.5 + 1 + 1) / 3)
    assert found.metrics["accuracy"] == 80  # B0 is not judged
    assert found.correct[B0] == 1
    assert bench.official_count == 172_174


def test_entailed_questions_written_as_text_are_read(tmp_path: Path) -> None:
    questions = official.gqa_questions(1)
    for each in questions.values():
        each["entailed"] = str(each["entailed"])
    official.dump(tmp_path / "testdev_all_questions.json", questions)
    bench = get("gqa", consistency=True)
    examples = bench.load(tmp_path)
    assert bench.score(examples, {A1: "red", A2: "square"}).metrics["consistency"] == 100
    assert bench.score(examples, {A1: "red"}).metrics["consistency"] == 0


def test_an_entailed_question_that_is_not_there_is_named(tmp_path: Path) -> None:
    questions = official.gqa_questions(1)
    questions[A1]["entailed"] = ["77"]
    official.dump(tmp_path / "testdev_all_questions.json", questions)
    bench = get("gqa", consistency=True)
    with pytest.raises(DataError, match="entails '77'"):
        bench.score(bench.load(tmp_path), {A1: "red"})


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a folder of GQA: testdev_balanced_questions\.json is missing"):
        get("gqa").load(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        get("gqa").load(official.dump(tmp_path / "x.json", {}))
    official.dump(tmp_path / "testdev_balanced_questions.json", {})
    with pytest.raises(DataError, match="holds no questions"):
        get("gqa").load(tmp_path)
    questions = official.gqa_questions(1)
    del questions[A1]["answer"]  # as in the splits whose answers are kept back
    official.dump(tmp_path / "testdev_balanced_questions.json", questions)
    with pytest.raises(DataError, match=f"question '{A1}' has no 'answer'"):
        get("gqa").load(tmp_path)


def test_unknown_options() -> None:
    with pytest.raises(ConfigError, match="not 'test'"):
        get("gqa", split="test")
    with pytest.raises(ConfigError, match="no option 'ocr'; its options are: consistency, limit, questions, split"):
        get("gqa", ocr="none")
    with pytest.raises(ConfigError, match="no benchmark 'gqaa'"):
        get("gqaa")

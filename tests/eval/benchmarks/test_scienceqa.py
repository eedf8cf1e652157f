from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import official
from mobillama_v.errors import ConfigError, DataError
from mobillama_v.eval.benchmarks.registry import get
from mobillama_v.eval.benchmarks.scienceqa import SUFFIX, letter


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # the whole answer is a letter
        ("A", "A"),
        ("C", "C"),
        ("D", None),  # no such choice
        ("F", None),
        ("a", None),
        ("A.", None),  # neither a letter, nor a letter, stop and blank
        ("", None),
        ("AB", None),
        # a letter, a full stop and a blank begin it
        ("B. two", "B"),
        ("B. ", "B"),
        ("B.two", None),
        ("D. four", None),
        ("B) two", None),
        ("B. The answer is A.", "B"),  # what comes first decides
        # the sentence, once
        ("The answer is B.", "B"),
        ("I think so. The answer is C. BECAUSE: it is", "C"),
        ("The answer is B", None),  # nothing follows where the pattern wants a character
        ("The answer is B!", "B"),  # any character
        ("The answer is B\n", None),  # but a newline
        ("The answer is A. The answer is A.", None),  # twice
        ("The answer is E.", None),
        ("The answer is Z.", None),
        ("the answer is B.", None),
        ("The answer is Bob.", "B"),  # so it is
    ],
)
def test_every_branch_of_the_parser_with_three_choices(answer: str, expected: str | None) -> None:
    assert letter(answer, 3) == expected


@given(st.text(alphabet="ABCDEF. thenswri\n", max_size=30), st.integers(2, 5))
def test_what_is_chosen_is_a_choice_and_in_the_answer(answer: str, choices: int) -> None:
    found = letter(answer, choices)
    assert found is None or (found in "ABCDE"[:choices] and found in answer)


def test_prompts_and_pictures(tmp_path: Path) -> None:
    examples = get("scienceqa").load(official.scienceqa(tmp_path))
    assert [each.id for each in examples] == ["4", "5", "11", "15"]
    assert examples[0].prompt == f"Which is number 4?\nA. one\nB. two\nC. three{SUFFIX}"
    assert examples[1].prompt == (
        f"Context: The figure\nshows it.\nWhich is number 5?\nA. one\nB. two\nC. three{SUFFIX}"
    )
    assert examples[0].images == ()
    assert examples[1].images == (tmp_path / "images/test/5/image.png",) and examples[1].images[0].is_file()
    assert [each.answers for each in examples] == [("B",), ("C",), ("C",), ("A",)]


def test_llavas_file_gives_the_same_prompts(tmp_path: Path) -> None:
    data = official.scienceqa(tmp_path)
    ours = get("scienceqa").load(data)
    theirs = get("scienceqa", questions=official.llava_scienceqa(tmp_path / "llava_test_CQM-A.json")).load(data)
    assert theirs == ours


def test_score_over_all_and_over_pictures(tmp_path: Path) -> None:
    bench = get("scienceqa")
    examples = bench.load(official.scienceqa(tmp_path))
    found = bench.score(examples, {"4": "B", "5": "C. three", "15": "B"})  # 11 is not answered
    assert found.correct == {"4": 1, "5": 1, "11": 0, "15": 0}
    assert found.metrics == {"accuracy": 50.0, "img": 50.0}
    assert found.headline == 50 and "image" in found.headline_name
    assert found.missing == ("11",)
    assert found.categories == {
        "subject": {"language science": 0, "natural science": 100, "social science": 0},
        "context": {"text": 50, "image": 50, "none": 100},
        "grade": {"1-6": 100, "7-12": 0},
    }


def test_without_pictures_the_headline_is_over_all(tmp_path: Path) -> None:
    official.scienceqa(tmp_path)
    problems = official.science_problems()
    for each in problems.values():
        each["image"] = None
    official.dump(tmp_path / "problems.json", problems)
    bench = get("scienceqa")
    found = bench.score(bench.load(tmp_path), {"4": "B"})
    assert (found.headline, found.headline_name, set(found.metrics)) == (25.0, "accuracy", {"accuracy"})


def test_pictures_unpacked_beside_the_problems_are_found(tmp_path: Path) -> None:
    official.scienceqa(tmp_path)
    (tmp_path / "images" / "test").rename(tmp_path / "test")
    assert get("scienceqa").load(tmp_path)[1].images[0].is_file()


def test_a_wrong_or_half_downloaded_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a folder of ScienceQA: problems\.json is missing"):
        get("scienceqa").load(tmp_path)
    official.scienceqa(tmp_path)
    official.dump(tmp_path / "pid_splits.json", {"test": ["4", "5", "4"]})
    with pytest.raises(DataError, match=r"has questions twice \('4'\)"):
        get("scienceqa").load(tmp_path)
    official.dump(tmp_path / "pid_splits.json", {"train": ["4"]})
    with pytest.raises(DataError, match="has no 'test'"):
        get("scienceqa").load(tmp_path)
    official.scienceqa(tmp_path)
    problems = official.science_problems()
    del problems["11"]
    official.dump(tmp_path / "problems.json", problems)
    with pytest.raises(DataError, match=r"lacks 1 problems of the split test \('11'\)"):
        get("scienceqa").load(tmp_path)
    text = json.dumps(official.science_problems())
    (tmp_path / "problems.json").write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match="not valid JSON, or cut off"):
        get("scienceqa").load(tmp_path)
    (tmp_path / "problems.json").write_text("[]")
    with pytest.raises(DataError, match="holds a JSON array and must hold an object"):
        get("scienceqa").load(tmp_path)


def test_a_problem_that_cannot_be_is_named(tmp_path: Path) -> None:
    official.scienceqa(tmp_path)
    problems = official.science_problems()
    problems["5"]["answer"] = 3
    official.dump(tmp_path / "problems.json", problems)
    with pytest.raises(DataError, match="problem '5' has 3 choices and the answer 3"):
        get("scienceqa").load(tmp_path)
    problems["5"]["answer"] = "C"
    official.dump(tmp_path / "problems.json", problems)
    with pytest.raises(DataError, match="problem '5' has a 'answer' that is a JSON string"):
        get("scienceqa").load(tmp_path)


def test_an_unknown_split_or_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not 'testt'"):
        get("scienceqa", split="testt")
    with pytest.raises(DataError, match="no questions of the split minival; check the files of ScienceQA"):
        get("scienceqa", split="minival").load(official.scienceqa(tmp_path))
    assert len(get("scienceqa", split="minitest").load(tmp_path)) == 2

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillama_v.eval.benchmarks.answer_metrics import anls, distance, exact, yes_no_metrics, yes_or_no


def test_exact_match_minds_neither_case_nor_a_final_stop_nor_blanks_around() -> None:
    assert exact(" Red. ", ["blue", "red"]) == 1
    assert exact("dark red", ["red"]) == 0
    assert exact("", ["red"]) == 0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_distance(a: str, b: str, expected: int) -> None:
    assert distance(a, b) == distance(b, a) == expected


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_distance_is_one(a: str, b: str, c: str) -> None:
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) <= max(len(a), len(b))
    assert distance(a, c) <= distance(a, b) + distance(b, c)


def test_anls_is_the_nearest_answers_similarity_and_nothing_under_one_half() -> None:
    assert anls("Hello  World", ["hello world"]) == 1
    assert anls("helo", ["hello", "nothing"]) == pytest.approx(0.8)
    assert anls("ab", ["ax"]) == 0.5
    assert anls("abc", ["axy"]) == 0
    assert anls("", ["a"]) == 0
    assert anls("", [""]) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("no", "no"),
        ("No, there is not.", "no"),
        ("There is no dog. Yes.", "no"),
        ("Yes. No.", "yes"),  # the first sentence only
        ("NO", "yes"),  # the list has No and no
        ("A dog", "yes"),
        ("", "yes"),
        ("not", "no"),
        ("Nothing", "yes"),
    ],
)
def test_yes_or_no_reads_as_pope_does(answer: str, expected: str) -> None:
    assert yes_or_no(answer) == expected


def test_yes_no_metrics() -> None:
    right = {"a": "yes", "b": "yes", "c": "no", "d": "no", "e": "yes"}
    said = {"a": "Yes", "b": "No", "c": "Yes", "d": "No"}  # e was not answered
    found = yes_no_metrics(right, said)  # type: ignore[arg-type]
    assert found == pytest.approx({"precision": 50.0, "recall": 100 / 3, "f1": 40.0, "yes_ratio": 40.0})


def test_yes_no_metrics_without_any_yes() -> None:
    assert yes_no_metrics({"a": "no"}, {"a": "no"}) == {"precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}

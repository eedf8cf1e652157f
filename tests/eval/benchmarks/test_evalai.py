"""Worked by hand from the rules of EvalAI's answer processor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillama_v.eval.benchmarks.evalai import _CONTRACTIONS, normalize, soft_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("  Stop Sign ", "stop sign"),
        ("a cat, the dog", "cat dog"),  # articles and commas go
        ("A", ""),
        ("Yes?", "yes"),
        ("line\none\ttab", "line 1 tab"),  # and number words become digits
        ("none", "0"),
        ("zero one ten eleven", "0 1 10 eleven"),
        ("joe's", "joe 's"),  # set apart
        ("let's", "let 's"),  # and so never looked up as a contraction
        ("dont", "don't"),
        ("Dont", "don't"),
        ("Im", "im"),  # the list has this with a capital, which no lower-cased word has
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("shed", "shed"),
        ("shed've", "she'd've"),
        ("'ows'at", "'ow's'at"),
        ("'ow'sat", "'ow 'sat"),  # 's is set apart before
        ("somebody'd", "somebodyd"),  # the wrong way round
        ("oclock", "o'clock"),
    ],
)
def test_words(answer: str, expected: str) -> None:
    assert normalize(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("wi-fi", "wi fi"),  # a space in place of a mark that stands between letters
        ("wi- fi-x", "wi fix"),  # beside a space anywhere, before it
        ("wi -fi-x", "wi fix"),  # or after it: deleted everywhere
        ("a-b - c-d", "ab cd"),  # one beside a space: all of that mark are deleted, the article a with its dash, too
        ("x/y - z", "x y z"),  # each mark decides for itself
        ("(left)", "left"),
        ("#1!", "#1"),  # no mark of the list
        ("50%", "50%"),
        ("$5:00", "$5:00"),
        ('"quoted" text', "quoted text"),
        ("1,000", "1000"),
        ("1, 000", "1 000"),
        ("3-4, 5", "3 4 5"),  # the comma has gone before anything could ask for one between digits
        ("[a]{b}<c>@`+=;\\_", "b c"),  # each mark is a blank, and so a is an article
    ],
)
def test_punctuation(answer: str, expected: str) -> None:
    assert normalize(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("yes.", "yes"),
        ("u.s.a.", "usa"),
        ("3.5", "3.5"),  # before a digit
        (".5", ".5"),
        ("5.", "5"),  # after a digit it was meant to stay, and does not
        ("5.a", "5a"),
        ("v.2", "v.2"),
        ("a.", ""),  # an article once the stop is gone
    ],
)
def test_full_stops(answer: str, expected: str) -> None:
    assert normalize(answer) == expected


def test_only_the_first_32_full_stops_go() -> None:
    assert normalize("x" + "." * 32) == "x"
    assert normalize("x" + "." * 35) == "x..."


def test_a_contraction_is_known_by_every_spelling_that_lacks_one_apostrophe() -> None:
    assert len(_CONTRACTIONS) == 114
    assert _CONTRACTIONS["y'allll"] == _CONTRACTIONS["yall'll"] == "y'all'll"
    assert {"lets", "its", "ill", "wed", "id", "ive", "im"}.isdisjoint(_CONTRACTIONS)


@given(st.text())
def test_the_result_is_lower_case_words_with_single_blanks(answer: str) -> None:
    found = normalize(answer)
    assert found == " ".join(found.split()) and not set(found.split()) & {"a", "an", "the", "none", "zero"}
    assert "," not in found and "?" not in found


@pytest.mark.parametrize(
    ("same", "expected"),
    [
        (0, 0.0),
        (1, 0.3),  # nine of ten leave one match: 9/10 · 1/3
        (2, 0.6),  # 8/10 · 2/3 + 2/10 · 1/3
        (3, 0.9),  # 7/10 · 1 + 3/10 · 2/3
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_soft_accuracy_leaves_each_person_out(same: int, expected: float) -> None:
    answers = ["The stop"] * same + [f"other {i}" for i in range(10 - same)]
    assert soft_accuracy("stop.", answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [(["red"], 1.0), (["blue"], 0.0), (["red", "red"], 1.0), (["red", "blue"], 0.5), (["red", "red", "red"], 1.0)],
)
def test_soft_accuracy_with_fewer_people(answers: list[str], expected: float) -> None:
    assert soft_accuracy("red", answers) == pytest.approx(expected)


@given(st.lists(st.sampled_from(["yes", "no", "Yes.", "two", "2", ""]), min_size=1, max_size=12), st.data())
def test_soft_accuracy_does_not_depend_on_order(answers: list[str], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(answers))
    for answer in ("yes", "2", "", "other"):
        assert soft_accuracy(answer, answers) == pytest.approx(soft_accuracy(answer, shuffled))
        assert 0 <= soft_accuracy(answer, answers) <= 1

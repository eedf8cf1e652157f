"""Intervals that hold what is known of them, and pairs whose wins can be counted by hand."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest

from mobillama_v.errors import DataError
from mobillama_v.eval.benchmarks.base import Score
from mobillama_v.eval.benchmarks.registry import public
from mobillama_v.eval.compare import (
    Column,
    benchmarks_of,
    cell,
    comparison_rows,
    disagreement_lines,
    markdown,
    pair,
    pairs,
    read_columns,
    sentence,
)
from mobillama_v.eval.results import Judged, Result, paper_score, write_result
from mobillama_v.eval.stats import difference, headline_rows, interval, statistic, wilson


def judged(i: int, correct: float, *, unit: str | None = None, text: str = "x", **group: str) -> Judged:
    return Judged(f"q{i}", unit or f"q{i}", correct, f"Question {i}?", text, ("x",), group)


def result(name: str, correct: list[float], **settings: str) -> Result:
    rows = tuple(judged(i, value, text=f"{value}", category="count") for i, value in enumerate(correct))
    headline = statistic(name, rows)
    score = Score(headline, "accuracy", {"accuracy": headline}, {}, {row.id: row.correct for row in rows}, ())
    about = {"benchmark": name, "title": name.upper(), "settings": settings, "model": "m", "max_new_tokens": 24}
    return Result(about, score, interval(name, headline, rows), rows)


def test_the_interval_is_that_of_a_mean() -> None:
    chance = random.Random(0)
    rows = [judged(i, chance.random() ** 2) for i in range(2_000)]  # partly right, as soft accuracies are
    mean = statistic("gqa", rows)
    low, high = interval("gqa", mean, rows) or (0, 0)
    error = 100 * np.std([row.correct for row in rows]) / np.sqrt(len(rows))
    assert mean - low == pytest.approx(1.96 * error, rel=0.05) and high - mean == pytest.approx(1.96 * error, rel=0.05)


@pytest.mark.parametrize(
    ("right", "count", "expected"),
    # (2k + z² ± z sqrt(z² + 4k(1 - k/n))) / 2(n + z²)
    [(0, 28, (0.0, 12.0643)), (28, 28, (87.9357, 100.0)), (1, 2, (9.4531, 90.5469)), (7, 50, (6.9509, 26.1862))],
)
def test_of_right_and_wrong_answers_it_is_wilsons(right: int, count: int, expected: tuple[float, float]) -> None:
    rows = [judged(i, float(i < right)) for i in range(count)]
    assert interval("gqa", 100 * right / count, rows) == pytest.approx(expected, abs=1e-3)
    same = [judged(i, 0.3) for i in range(count)]  # no variance at all
    low, high = interval("gqa", 30.0, same) or (0, 0)
    assert 0 < low < 30 < high < 100


def test_questions_on_one_image_make_the_interval_wider() -> None:
    alone = [judged(i, float(i % 40 < 20)) for i in range(400)]
    together = [judged(i, float(i % 40 < 20), unit=f"{i // 20}.png") for i in range(400)]
    widths = [np.diff(interval("gqa", 50.0, rows) or (0, 0))[0] for rows in (alone, together)]
    assert widths[1] == pytest.approx(np.sqrt(20) * widths[0], rel=0.15)


def test_points_of_mme_count_pairs() -> None:
    rows = [
        judged(0, 1, unit="a", category="count", area="perception"),
        judged(1, 1, unit="a", category="count", area="perception"),
        judged(2, 1, unit="b", category="count", area="perception"),
        judged(3, 0, unit="b", category="count", area="perception"),
        judged(4, 1, unit="c", category="code_reasoning", area="cognition"),
        judged(5, 0, unit="c", category="code_reasoning", area="cognition"),
    ]
    assert statistic("mme", rows) == pytest.approx(75 + 50 + 50 + 0)
    assert headline_rows("mme", 125.0, rows) == rows[:4]
    low, high = interval("mme", 125.0, rows) or (0, 0)
    # Of one category, 125 of 200 points. What the pictures a and b add to it varies by 1/8 + 1/4 of 100 each.
    trials = (125 / 200) * (75 / 200) / (2 * (37.5 / 200) ** 2)
    assert (low, high) == pytest.approx([200 * each for each in wilson(125 / 200, trials)])


def test_a_headline_of_questions_with_an_image() -> None:
    rows = [judged(0, 1, image="yes"), judged(1, 0, image="no"), judged(2, 1, image="yes")]
    assert headline_rows("scienceqa", 100.0, rows) == [rows[0], rows[2]]
    assert headline_rows("scienceqa", 50.0, rows) == [] and interval("scienceqa", 50.0, rows) is None


def test_the_difference_is_paired() -> None:
    chance = random.Random(1)
    first = [judged(i, float(chance.random() < 0.5)) for i in range(500)]
    second = [judged(i, 1.0 if i < 25 else row.correct) for i, row in enumerate(first)]
    change, (low, high) = difference("gqa", first, second)
    assert change == pytest.approx(statistic("gqa", second) - statistic("gqa", first)) and 0 < low < change < high
    wide = interval("gqa", statistic("gqa", first), first)
    assert wide and high - low < 0.5 * (wide[1] - wide[0])


def test_wins_are_counted() -> None:
    a, b = result("gqa", [1, 1, 0, 0, 0.3], ocr="rosetta"), result("gqa", [1, 0, 1, 1, 0.3], ocr="none")
    found = pair("a", a, "b", b)
    assert found.shared == 5 and found.wins == (1, 2)
    assert [(d.first.id, d.winner) for d in found.disagreements] == [("q1", 0), ("q2", 1), ("q3", 1)]
    assert found.change and found.change[0] == pytest.approx(20.0)
    said = sentence(found)
    assert "disagree on 3: a wins 1, b wins 2" in said and "b less a: +20.00" in said
    assert "ocr: 'rosetta' and 'none'" in said


def test_runs_of_different_questions_share_what_they_share() -> None:
    a, b = result("gqa", [1, 0, 1]), result("gqa", [1, 1])
    found = pair("a", a, "b", b)
    assert found.shared == 2 and found.wins == (0, 1) and found.change is None


def test_the_paper_stands_beside_the_runs() -> None:
    columns = [
        Column("one", {"mme": result("mme", [0.0]), "gqa": result("gqa", [1, 0])}),
        Column("two", {"gqa": result("gqa", [1, 1]), "custom": result("custom", [1])}),
    ]
    assert benchmarks_of(columns) == ["gqa", "mme", "custom"]
    header, *body = comparison_rows(columns)
    assert header == ["benchmark", "one", "two", "MobiLlama-V 0.8B (paper)"]
    assert body[0] == ["gqa, accuracy", "50.00 (9.5 to 90.5)", "100.00 (34.2 to 100.0)", "58.5"]
    assert body[1][2:] == ["–", "1,191.9"] and body[2][3] == "–"
    assert [paper_score(name) for name in public()] == ["58.5", "53.1", "41.4", "1,191.9"]
    text = markdown(columns, shown=1)
    assert "| gqa, accuracy | 50.00 (9.5 to 90.5) |" in text and "Warning" not in text and "Question 1?" in text
    (line,) = disagreement_lines(pairs(columns)).splitlines()
    assert json.loads(line)["winner"] == "two" and json.loads(line)["question_id"] == "q1"


def test_a_partial_run_is_marked(tmp_path: Path) -> None:
    whole, part = result("gqa", [1, 0]), result("gqa", [1, 0])
    whole.about["official_questions"], part.about["official_questions"] = 2, 12_578
    missing = dataclasses.replace(whole, score=dataclasses.replace(whole.score, missing=("q1",)))
    columns = [Column(name, {"gqa": each}) for name, each in (("whole", whole), ("part", part), ("missing", missing))]
    cells = comparison_rows(columns)[1]
    assert cells[1] == "50.00 (9.5 to 90.5)"
    assert cells[2] == "50.00 (9.5 to 90.5), partial: 2 of 12,578 questions"
    assert cells[3] == "50.00 (9.5 to 90.5), partial: 1 without an answer"
    assert "Warning: what is partial cannot be compared" in markdown(columns, shown=0)


def test_runs_are_read_from_folders(tmp_path: Path) -> None:
    for run in ("x/run", "y/run"):
        (tmp_path / run / "gqa").mkdir(parents=True)
        write_result(result("gqa", [1, 0]), tmp_path / run / "gqa")
    names = [column.name for column in read_columns([tmp_path / "x/run", tmp_path / "y/run"])]
    assert names == [str(tmp_path / "x/run"), str(tmp_path / "y/run")]  # the same last name tells nothing
    assert read_columns([tmp_path / "x/run" / "gqa"])[0].results["gqa"].score.headline == 50
    with pytest.raises(DataError, match="given twice"):
        read_columns([tmp_path / "x/run", tmp_path / "x/run/"])
    with pytest.raises(DataError, match="holds no scores"):
        read_columns([tmp_path])
    (tmp_path / "x/run/gqa/score.json").write_text("{}")
    with pytest.raises(DataError, match="not a score of this version"):
        read_columns([tmp_path / "x/run"])


def test_cells_are_text() -> None:
    assert cell("a|b\n<i>`x`</i> [l](u)") == "a\\|b \\<i\\>\\`x\\`\\</i\\> \\[l\\](u)"

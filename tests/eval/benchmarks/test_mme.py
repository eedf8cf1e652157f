from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import official
from mobillama_v.errors import DataError
from mobillama_v.eval.benchmarks.mme import CATEGORIES, verdict
from mobillama_v.eval.benchmarks.registry import get
from mobillama_v.eval.predictions import match, read_records


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("NO", "no"),
        ("Yes.", "yes"),
        (" yes", "yes"),
        ("  yes", "other"),  # "  ye"
        ("\nno", "no"),
        ("  no", "no"),
        ("   no", "other"),
        ("No, yes", "no"),
        ("yno", "no"),
        ("yesno", "yes"),  # yes is looked for first
        ("none", "no"),
        ("not", "no"),
        ("snow", "no"),
        ("Unknown", "other"),  # "unkn"
        ("I say yes", "other"),
        ("yeah", "other"),
        ("", "other"),
    ],
)
def test_the_first_four_characters_decide(answer: str, expected: str) -> None:
    assert verdict(answer) == expected


@given(st.text(max_size=6), st.text())
def test_nothing_after_the_fourth_character_matters(start: str, rest: str) -> None:
    four = (start + "....")[:4]
    if len(four.lower()) == 4:  # a few letters grow when they are lower-cased
        assert verdict(four + rest) == verdict(four)


def test_examples_of_both_layouts(tmp_path: Path) -> None:
    examples = get("mme").load(official.mme(tmp_path))
    assert len(examples) == 14 * 4 and len({each.id for each in examples}) == 14 * 4
    by_id = {each.id: each for each in examples}
    flat, nested = by_id["code_reasoning/0001.png#2"], by_id["artwork/images/0001.jpg#2"]
    for each in (flat, nested):  # two blanks before the request in the file, none before the new one
        assert each.prompt == "Is it blue?\nAnswer the question using a single word or phrase."
        assert each.answers == ("no",) and each.images[0].is_file()
    assert nested.images == (tmp_path / "artwork" / "images" / "0001.jpg",)
    assert get("mme", questions=official.llava_mme(tmp_path / "l.jsonl")).load(tmp_path) == examples


def test_the_release_folder_may_be_named(tmp_path: Path) -> None:
    official.mme(tmp_path / "MME_Benchmark_release_version")
    assert len(get("mme").load(tmp_path)) == 56


def test_points_are_accuracy_and_pairs(tmp_path: Path) -> None:
    bench = get("mme")
    examples = bench.load(official.mme(tmp_path))
    answers = {each.id: each.answers[0] for each in examples}
    answers["count/0000.jpg#2"] = "Yes"  # one of four wrong: 75, and one of two pairs: 50
    answers["OCR/0000.jpg#1"] = answers["OCR/0001.jpg#1"] = "perhaps"  # 50 and 0
    del answers["code_reasoning/0000.png#1"]  # not answered: 75 and 50
    found = bench.score(examples, answers)
    assert found.categories["perception"]["count"] == 125
    assert found.categories["perception"]["OCR"] == 50
    assert found.categories["cognition"]["code_reasoning"] == 125
    assert found.categories["accuracy"]["count"] == 75 and found.categories["accuracy+"]["count"] == 50
    assert found.metrics == {"perception": 1775, "cognition": 725, "total": 2500}
    assert (found.headline, found.headline_name) == (1775, "perception")
    assert found.missing == ("code_reasoning/0000.png#1",)
    assert list(found.categories["perception"]) + list(found.categories["cognition"]) == list(CATEGORIES)


def test_always_yes_gets_half_and_no_pair(tmp_path: Path) -> None:
    bench = get("mme")
    examples = bench.load(official.mme(tmp_path))
    assert bench.score(examples, {each.id: "Yes" for each in examples}).metrics["total"] == 14 * 50
    assert bench.score(examples, {}).metrics["total"] == 0


def test_llavas_answers_and_the_official_folder_are_found_by_picture_and_question(tmp_path: Path) -> None:
    bench = get("mme")
    examples = bench.load(official.mme(tmp_path / "data"))
    rows = official.mme_rows()
    lines = [{"question_id": n, "prompt": official.mme_prompt(q), "text": f"{a} {q}"} for _, n, q, a in rows]
    path = official.dump_lines(tmp_path / "a.jsonl", lines[::-1])
    found = match(bench, examples, read_records(path), of="a.jsonl")
    assert len(found.predictions) == 56 and bench.score(found.examples, found.predictions).metrics["total"] == 2800
    # What convert_answer_to_mme.py makes of them: a file for each category.
    for category, name, question, answer in rows:
        with open(tmp_path / f"{category}.txt", "a", encoding="utf-8") as file:
            file.write(f"{Path(name).stem}.txt\t{question}\t{answer}\t{answer}\n")
    (tmp_path / "a.jsonl").unlink()
    shutil.rmtree(tmp_path / "data")
    found = match(bench, examples, bench.read_predictions(tmp_path), of=str(tmp_path))
    assert bench.score(found.examples, found.predictions).metrics["total"] == 2800


def test_scoring_needs_no_pictures(tmp_path: Path) -> None:
    official.mme(tmp_path)
    own = [each.id for each in get("mme").load(tmp_path)]
    prompts = {each.id: each.prompt for each in get("mme").load(tmp_path)}
    for path in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")]:
        path.unlink()
    examples = get("mme").load(tmp_path)
    lines = [{"question_id": name, "prompt": prompts[name], "text": "Yes"} for name in own]
    records = read_records(official.dump_lines(tmp_path / "own.jsonl", lines))
    assert len(match(get("mme"), examples, records, of="own").predictions) == 56


def test_half_downloads_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"not a folder of MME, or half of one: .*'existence', 'count', 'position' and 11"
    ):
        get("mme").load(tmp_path)
    official.mme(tmp_path)
    shutil.move(tmp_path / "count", tmp_path / "elsewhere")
    with pytest.raises(DataError, match="of the 14 categories 'count' is missing"):
        get("mme").load(tmp_path)
    (tmp_path / "count").mkdir()
    with pytest.raises(DataError, match=r"the category count in .* is empty"):
        get("mme").load(tmp_path)
    (tmp_path / "count").rmdir()
    shutil.move(tmp_path / "elsewhere", tmp_path / "count")
    (tmp_path / "scene" / "questions_answers_YN" / "0001.txt").unlink()
    with pytest.raises(DataError, match=r"1 pictures of MME's scene have no text file in .*'0001\.jpg'"):
        get("mme").load(tmp_path)
    (tmp_path / "scene" / "images" / "0001.jpg").unlink()
    (tmp_path / "OCR" / "0000.jpg").unlink()
    with pytest.raises(DataError, match=r"1 text files of MME's OCR have no picture in .*'0000\.txt'"):
        get("mme").load(tmp_path)


def test_a_picture_without_its_pair_of_questions_is_named(tmp_path: Path) -> None:
    official.mme(tmp_path)
    text = tmp_path / "color" / "0001.txt"
    both = text.read_text(encoding="utf-8")
    text.write_text(both.split("\n")[0] + "\n\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"1 pictures .* two questions \('color/0001\.jpg'; the first has 1\)"):
        get("mme").load(tmp_path)
    text.write_text(both.replace("\t", " "), encoding="utf-8")
    with pytest.raises(DataError, match=r"0001\.txt', line 1 is no question, tab and answer"):
        get("mme").load(tmp_path)
    text.write_text(both.replace("Yes", "Maybe"), encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1 has the answer 'Maybe'"):
        get("mme").load(tmp_path)


def test_a_folder_of_answers_is_named_as_what_it_is(tmp_path: Path) -> None:
    for category in CATEGORIES:
        (tmp_path / f"{category}.txt").write_text("0001.jpg\tIs it a dog? Please answer yes or no.\tYes\tYes\n")
    with pytest.raises(DataError, match=r"holds answers to MME \(existence\.txt.*give it as --predictions"):
        get("mme").load(tmp_path)
    with pytest.raises(DataError, match="is a folder of answers to MME"):
        get("gqa").read_predictions(tmp_path)

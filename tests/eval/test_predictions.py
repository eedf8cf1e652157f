from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import official
from mobillama_v.errors import DataError
from mobillama_v.eval.benchmarks.base import Record
from mobillama_v.eval.benchmarks.registry import get
from mobillama_v.eval.predictions import match, read_questions, read_records


def read(path: Path) -> dict[str, str]:
    return {each.id: each.text for each in read_records(path)}


@pytest.mark.parametrize(
    "rows",
    [
        [{"question_id": "1", "prompt": "?", "text": "a", "finish_reason": "stop"}, {"question_id": 2, "text": ""}],
        [{"questionId": "1", "prediction": "a"}, {"questionId": "2", "prediction": ""}],
        [{"question_id": 1, "answer": "a"}, {"question_id": 2, "answer": ""}],
    ],
)
def test_lists_and_lines(tmp_path: Path, rows: list[Any]) -> None:
    assert read(official.dump(tmp_path / "a.json", rows)) == {"1": "a", "2": ""}
    assert read(official.dump_lines(tmp_path / "a.jsonl", rows)) == {"1": "a", "2": ""}


def test_one_line_is_a_file_too(tmp_path: Path) -> None:
    assert read(official.dump_lines(tmp_path / "a.jsonl", [{"question_id": 1, "text": "a"}])) == {"1": "a"}


@pytest.mark.parametrize("indent", [None, 2])
def test_llavas_scienceqa_result(tmp_path: Path, indent: int | None) -> None:
    import json

    found = {"acc": 50.0, "correct": 1, "count": 2, "results": {"4": 1, "5": -1}, "outputs": {"4": "B", "5": "two"}}
    (tmp_path / "r.json").write_text(json.dumps(found, indent=indent))
    assert read(tmp_path / "r.json") == {"4": "B", "5": "two"}
    (tmp_path / "r.json").write_text(json.dumps(found["outputs"], indent=indent))
    assert read(tmp_path / "r.json") == {"4": "B", "5": "two"}


def test_blank_lines_windows_ends_a_mark_of_byte_order_and_odd_characters(tmp_path: Path) -> None:
    text = '\ufeff{"question_id": 1, "text": "a\u2028b"}\r\n\r\n{"question_id": 2, "text": "c"}'
    (tmp_path / "a.jsonl").write_bytes(text.encode())
    assert read(tmp_path / "a.jsonl") == {"1": "a\u2028b", "2": "c"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": 1, "text": "a"}\n{"question_id": 2, "te', "line 2 is not valid JSON"),
        (
            '{"question_id": 1, "text": 5}\n',
            "line 1 answers question '1' with a JSON number; an answer must be a string",
        ),
        ('{"question_id": 1, "text": null}\n', "with a JSON null"),
        ('{"question_id": 1, "text": ["a"]}\n', "with a JSON array"),
        ('{"question_id": 1, "prompt": "a"}\n', r"line 1 \(question '1'\) has no answer"),
        ('{"text": "a"}\n{"text": "b"}\n', "line 1 has no 'question_id'"),
        ('{"question_id": true, "text": "a"}\n', "line 1 has no 'question_id'"),
        ('{"question_id": 1.5, "text": "a"}\n', "line 1 has no 'question_id'"),
        ("5\n6\n", "line 1 is a JSON number"),
        ("[5]", "entry 1 is a JSON number"),
        ('{"acc": 1, "outputs": [1]}', "holds no answers by question id"),
        ('{"acc": 1.5}', "question 'acc' answers question 'acc' with a JSON number"),
        ("", "holds no predictions"),
        ("[]", "holds no predictions"),
        ("{\n}", "holds no predictions"),
        ("[1,\n", "not valid JSON, or cut off"),
        ("\x00\x01", "line 1 is not valid JSON"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_records(tmp_path / "a.jsonl")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_records(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_records(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="is a folder; give --predictions a file"):
        read_records(tmp_path)
    with pytest.raises(DataError, match=r"folder without <category>\.txt"):
        get("mme").read_predictions(tmp_path)
    (tmp_path / "count.txt").write_text("0001.jpg\tIs it?\tYes\n")
    with pytest.raises(DataError, match="line 1 has 3 columns and must have four"):
        get("mme").read_predictions(tmp_path)
    (tmp_path / "count.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no predictions"):
        get("mme").read_predictions(tmp_path)


def test_an_answer_about_no_question_is_named(tmp_path: Path) -> None:
    bench = get("gqa")
    examples = bench.load(official.gqa(tmp_path))
    records = [Record(f"line {i}", str(i), "x") for i in range(5)]
    with pytest.raises(
        DataError, match=r"5 answers are about no question of GQA .*'0', '1', '2' and 2 more; first in line 0"
    ):
        match(bench, examples, records, of="a.jsonl")
    with pytest.raises(DataError, match="1 answer is about no question"):
        match(bench, examples, records[:1], of="a.jsonl")


def test_a_question_answered_twice_is_named(tmp_path: Path) -> None:
    bench = get("gqa")
    examples = bench.load(official.gqa(tmp_path))
    name = examples[0].id
    records = [Record("line 1", name, "x"), Record("line 9", name, "x")]
    with pytest.raises(DataError, match=rf"answers question '{name}' twice \(line 1 and line 9\)"):
        match(bench, examples, records, of="a.jsonl")
    mme = get("mme")
    questions = mme.load(official.mme(tmp_path / "mme"))
    twice = Record("line 1", "count/0000.jpg", "Yes", "Is there a square?")
    with pytest.raises(DataError, match="twice"):
        match(mme, questions, [twice, twice], of="a.jsonl")
    with pytest.raises(DataError, match="about no question of MME"):
        match(mme, questions, [Record("line 1", "count/0000.jpg", "Yes", "Is there a circle?")], of="a.jsonl")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(data=st.data())
def test_the_order_of_a_file_does_not_matter_and_nothing_is_dropped(tmp_path: Path, data: st.DataObject) -> None:
    bench = get("textvqa")
    examples = bench.load(official.textvqa(tmp_path))
    rows = official.textvqa_rows()
    records = [Record("x", row["image_id"], row["answers"][0], official.textvqa_prompt(row)) for row in rows]
    some = data.draw(st.permutations(records))[: data.draw(st.integers(0, 4))]
    found = match(bench, examples, some, of="x")
    score = bench.score(found.examples, found.predictions)
    assert sorted(found.predictions.values()) == sorted(each.text for each in some)
    assert len(score.correct) == 4 and len(score.missing) == 4 - len(some)
    assert score.headline == pytest.approx(25 * sum(score.correct.values()))
    assert all(score.correct[name] == 0 for name in score.missing)


def test_questions_without_a_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1 has no question"):
        read_questions(official.dump_lines(tmp_path / "q.jsonl", [{"question_id": 1}]))
    with pytest.raises(DataError, match="entry 1 has no question"):
        read_questions(official.dump(tmp_path / "q.json", [{"id": 1, "conversations": []}]))


def test_one_record_over_several_lines_is_a_record(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text(json.dumps({"question_id": 7, "text": "red"}, indent=1))
    assert [(each.id, each.text) for each in read_records(path)] == [("7", "red")]


@pytest.mark.parametrize("layout", ["line", "indented", "list"])
def test_a_log_is_named_as_what_it_is(tmp_path: Path, layout: str) -> None:
    entry = {"doc_id": 0, "target": "red", "resps": [["red"]], "filtered_resps": ["red"]}
    path = tmp_path / "log.json"
    path.write_text(json.dumps([entry] if layout == "list" else entry, indent=1 if layout == "indented" else None))
    with pytest.raises(DataError, match=r"is from a log of lmms-eval or lm-eval \(doc_id, filtered_resps, resps\)"):
        read_records(path)

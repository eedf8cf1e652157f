from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import official
from mobillama_v.errors import ConfigError, DataError
from mobillama_v.eval.benchmarks.registry import get


def test_the_file_of_a_folder(tmp_path: Path) -> None:
    examples = get("custom").load(official.custom(tmp_path))
    assert [(each.id, each.prompt, each.answers) for each in examples] == [
        ("a", "What color?", ("red",)),
        ("b", "What color?", ("green",)),
        ("c", "What shape?", ("square", "box")),
    ]
    assert examples[0].images == (tmp_path / "images" / "0.jpg",)
    assert get("custom").load(tmp_path / "questions.jsonl") == examples  # or the file itself


def test_a_request_for_a_short_answer(tmp_path: Path) -> None:
    prompt = get("custom", prompt="short").load(official.custom(tmp_path))[0].prompt
    assert prompt == "What color?\nAnswer the question using a single word or phrase."


def test_llava_records_ask_every_turn(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A dog."},
        {"from": "human", "value": "What color?"},
        {"from": "gpt", "value": "Brown"},
    ]
    rows: list[dict[str, Any]] = [
        {"id": "x", "image": "a.jpg", "conversations": turns},
        {"id": 7, "conversations": turns[3:]},
        {
            "images": ["a.jpg", "b.jpg"],
            "messages": [{"role": "user", "content": "Same?"}, {"role": "assistant", "content": "No"}],
        },
    ]
    path = official.dump(tmp_path / "mine.json", rows)
    bench = get("custom", questions=path)
    (tmp_path / "pictures").mkdir()
    examples = bench.load(tmp_path / "pictures")
    assert [each.id for each in examples] == ["x", "x#2", "7", "3"]
    assert [each.prompt for each in examples[:2]] == ["What is it?", "What color?"]
    assert examples[0].images == (tmp_path / "pictures" / "a.jpg",)
    assert examples[2].images == () and len(examples[3].images) == 2
    assert bench.score(examples, {"x": "a dog", "x#2": "brown."}).headline == 50


def test_csv(tmp_path: Path) -> None:
    text = (
        "\ufeffID,Image,Question,Answers\n"
        '1,a.jpg,"What, then?",red|dark red\n'
        '2,,"Two\nlines?","[""a, b"", 3]"\n'
        ",b.jpg,Third?,x\n"
    )
    (tmp_path / "q.csv").write_text(text, encoding="utf-8")
    examples = get("custom").load(tmp_path / "q.csv")
    assert [(each.id, each.prompt, each.answers) for each in examples] == [
        ("1", "What, then?", ("red", "dark red")),
        ("2", "Two\nlines?", ("a, b", "3")),
        ("3", "Third?", ("x",)),
    ]
    assert examples[1].images == ()
    (tmp_path / "q.csv").write_text("id,question,answer\n1,Why, so,yes\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2 has more columns than the header"):
        get("custom").load(tmp_path / "q.csv")
    (tmp_path / "q.csv").write_text("picture,question,answer\na.jpg,What?,red\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2 has no 'image', and its 'picture' names a picture \(a\.jpg\)"):
        get("custom").load(tmp_path / "q.csv")


def test_what_is_written_is_the_answer(tmp_path: Path) -> None:
    answers = ["OPEN | 24h", "[illegible]", 3, True, "yes|no", "the <image> tag", [1, True]]
    rows = [
        {"id": i, "image": "b\\a.jpg", "question": "What does <image> mean?", "answer": a}
        for i, a in enumerate(answers)
    ]
    path = tmp_path / "q.json"
    for indent in (None, 2):
        path.write_text("\n".join(json.dumps(row, indent=indent) for row in rows))
        found = get("custom").load(path)
        assert [each.answers for each in found[:-1]] == [
            *(("OPEN | 24h",), ("[illegible]",), ("3",), ("true",), ("yes|no",), ("the <image> tag",))
        ]
        assert found[-1].answers == ("1", "true") and found[0].prompt == "What does <image> mean?"
        assert found[0].images == (tmp_path / "b" / "a.jpg",)
    text = "ID\tQuestion\tAnswer\n1\t<image>\\nQ?\tOPEN | 24h\n2\tQ\t[x]\n3\tQ\t" + "x" * 140_000
    (tmp_path / "questions.tsv").write_text(text.replace("\\n", " "), encoding="utf-16")
    found = get("custom").load(tmp_path / "questions.tsv")
    assert [each.answers[0][:10] for each in found] == ["OPEN | 24h", "[x]", "x" * 10]
    assert found[0].prompt == "Q?" and len(found[2].answers[0]) == 140_000
    path.write_text(json.dumps([{"question": "Is it?", "answer": True}]))
    (example,) = get("custom", metric="yesno").load(path)
    assert example.answers == ("yes",)


@pytest.mark.parametrize(
    ("metric", "answers", "expected"),
    [
        ("exact", {"a": "2", "b": "Lift."}, 50),  # any of several answers will do
        ("vqa", {"a": "2", "b": "left"}, 100 * (1 + 2 / 3) / 2),  # b leaves 1/2, 1/2 and 2/2
        ("anls", {"a": "two", "b": "loft"}, 87.5),  # one of four letters
    ],
)
def test_metrics(tmp_path: Path, metric: str, answers: dict[str, str], expected: float) -> None:
    rows = [
        {"id": "a", "question": "?", "answer": "two"},
        {"id": "b", "question": "?", "answers": ["left", "left", "lift"]},
    ]
    path = official.dump(tmp_path / "q.json", rows)
    bench = get("custom", metric=metric)
    found = bench.score(bench.load(path), answers)
    assert found.headline == pytest.approx(expected)
    assert found.metrics == {metric: found.headline}


def test_yes_and_no(tmp_path: Path) -> None:
    rows = [{"question_id": i, "text": "Is it?", "label": "yes" if i < 2 else "no", "category": "c"} for i in range(4)]
    path = official.dump_lines(tmp_path / "pope.jsonl", rows)
    bench = get("custom", metric="yesno")
    found = bench.score(bench.load(path), {"0": "Yes", "1": "No.", "2": "There is not."})
    assert found.metrics == pytest.approx(
        {"accuracy": 50, "precision": 100, "recall": 50, "f1": 200 / 3, "yes_ratio": 25}
    )
    assert found.categories == {"category": {"c": 50}} and found.missing == ("3",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1, "answer": "x"}, "line 1 has no question"),
        ({"question_id": 1, "text": "?"}, "line 1 has no answer"),
        ({"question_id": 1, "text": "?", "answer": "  "}, "line 1 has no answer"),
        ({"question_id": 1, "text": "?", "answer": [1, None]}, "line 1 has no answer"),
        ({"question_id": 1, "text": "?", "answer": {"a": 1}}, "line 1 has no answer: it is an object"),
        ({"question_id": 1, "text": "?", "answer": "x", "image": {"a": 1}}, "neither a path nor a list"),
        ({"id": 1, "conversations": [{"from": "human", "value": "?"}]}, "does not end with an answer"),
        ({"id": 1, "conversations": []}, "has no turns"),
        ({"1": {"text": "?", "answer": "x"}}, "line 1 is an object that holds records by their names"),
        ([1], "line 1 is no object"),
    ],
)
def test_bad_entries_are_named(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "q.jsonl"
    official.dump_lines(path, [row])
    if isinstance(row, list):  # a file that begins with [ is one list
        path.write_text('{"id": 1, "text": "?", "answer": "x"}\n[1]\n')
        message = "line 2 is no object"
    with pytest.raises(DataError, match=message):
        get("custom").load(path)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no questions\.jsonl, questions\.json, questions\.csv, questions\.tsv"):
        get("custom").load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        get("custom").load(tmp_path / "q.csv")
    (tmp_path / "q.csv").write_text("id,question,answer\n")
    with pytest.raises(DataError, match="holds no row"):
        get("custom").load(tmp_path / "q.csv")
    row = {"question_id": "a", "text": "?", "answer": "x"}
    with pytest.raises(DataError, match=r"has questions twice \('a'\)"):
        get("custom").load(official.dump_lines(tmp_path / "q.jsonl", [row, row]))
    (tmp_path / "q.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(DataError, match="it is UTF-8"):
        get("custom").load(tmp_path / "q.jsonl")
    with pytest.raises(DataError, match="must have yes or no"):
        get("custom", metric="yesno").load(official.dump_lines(tmp_path / "y.jsonl", [row]))
    with pytest.raises(ConfigError, match="not by 'bleu'"):
        get("custom", metric="bleu")
    with pytest.raises(ConfigError, match="not 'long'"):
        get("custom", prompt="long")

"""LLaVA records: what is read, and how what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mobillama_v.errors import DataError
from mobillama_v.prompt import Message, Slot, assistant, user
from mobillama_v.train.data.records import read_records

HUMAN = {"from": "human", "value": "<image>\nWhat?"}
GPT = {"from": "gpt", "value": "A cat."}


def record(**changes: Any) -> dict[str, Any]:
    return {"id": "r7", "image": "a.png", "conversations": [HUMAN, GPT]} | changes


def write(path: Path, *records: Any) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_json_and_json_lines_are_the_same(tmp_path: Path) -> None:
    values = [record(), {"id": 8, "conversations": [{"from": "human", "value": "Hi"}, GPT]}]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, values)) + "\n\n", encoding="utf-8-sig")
    first = list(read_records(write(tmp_path / "a.json", *values)))
    second = list(read_records(lines))
    assert [(r.id, r.images, r.messages) for r in first] == [(r.id, r.images, r.messages) for r in second]
    assert first[0].messages == (user("What?", images=1), assistant("A cat."))
    assert first[0].images == ("a.png",)
    assert (first[1].id, first[1].images) == ("8", ())


def test_a_lone_marker_goes_first_and_several_stay() -> None:
    from mobillama_v.train.data.records import parse_record

    last = parse_record(
        record(conversations=[{"from": "human", "value": "What is it?\n<image>"}, GPT]), source="f", place="number 1"
    )
    assert last.messages[0] == user("What is it?", images=1)
    turns = [{"from": "human", "value": "First <image> then <image>."}, GPT]
    both = parse_record(record(image=["a.png", "b.png"], conversations=turns), source="f", place="number 1")
    assert both.messages[0].content == ("First ", Slot.IMAGE, " then ", Slot.IMAGE, "\n.")
    assert both.images == ("a.png", "b.png")


def test_other_shapes_of_the_same_record() -> None:
    from mobillama_v.train.data.records import SLASHES, parse_record

    plain = parse_record(record(image="b/a.png"), source="f", place="number 1")
    messages = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]
    texts = [{"user": "What?", "assistant": "A cat."}]
    for changes in ({"conversations": None, "messages": messages}, {"conversations": None, "texts": texts}):
        other = parse_record(record(image="b\\a.png", **changes), source="f", place="number 1")
        assert (other.messages, other.images) == (plain.messages, plain.images)
        assert SLASHES in other.notes and not plain.notes


def test_a_marker_in_an_answer_is_text_and_a_system_turn_is_kept() -> None:
    from mobillama_v.train.data.records import parse_record

    turns = [{"from": "system", "value": "Be brief."}, HUMAN, {"from": "gpt", "value": "<image> is a tag"}]
    read = parse_record(record(conversations=turns), source="f", place="number 1")
    assert read.messages[0] == Message("system", ("Be brief.",))
    assert read.messages[2].content == ("<image> is a tag",)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"conversations": None}, "no list of turns"),
        ({"conversations": []}, "has no turns"),
        ({"conversations": [HUMAN, {"from": "narrator", "value": "x"}]}, "turn 2 is from 'narrator'"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": " \n"}]}, "turn 2 is an empty answer"),
        ({"conversations": [HUMAN, {"from": "gpt"}]}, "turn 2 has no role and content"),
        ({"conversations": [GPT, HUMAN]}, "does not end with an answer"),
        ({"conversations": [HUMAN, GPT, HUMAN | {"value": "So?"}]}, "does not end with an answer"),
        ({"conversations": [{"from": "system", "value": "x"}]}, "has no turns"),
        ({"image": None}, "1 <image> places and 0 images"),
        ({"image": ["a.png", "b.png"]}, "1 <image> places and 2 images"),
        ({"image": 3}, "neither a picture nor a list"),
        ({"image": [""]}, "neither a picture nor a list"),
        ({"image": "data:image/png;base64,AAAA"}, "is no path; write the image to a file"),
        ({"conversations": [HUMAN, {"from": ["gpt"], "value": "x"}]}, "turn 2 is from list"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "\ud800"}]}, "half a character"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_id(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    path = write(tmp_path / "data.json", record(id="good"), record(**changes))
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert f"{path}, record 'r7'" in str(caught.value)
    assert problem in str(caught.value)


def test_records_without_id_are_named_by_number(tmp_path: Path) -> None:
    bad = {"conversations": []}
    with pytest.raises(DataError, match="record 'number 2'"):
        list(read_records(write(tmp_path / "data.json", record(), bad)))
    with pytest.raises(DataError, match="holds records by their names; write them as a list"):
        list(read_records(write(tmp_path / "data.json", {"1": record()})))
    with pytest.raises(DataError, match="number 2 is no mapping"):
        list(read_records(write(tmp_path / "data.json", record(), "text")))


def test_files_that_are_no_json(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    with pytest.raises(DataError, match="cannot be read"):
        list(read_records(path))
    path.write_text("[{]")
    with pytest.raises(DataError, match="not valid JSON"):
        list(read_records(path))
    path.write_text(json.dumps(record()) + "\n{oops\n")
    with pytest.raises(DataError, match="line 2 is not valid JSON"):
        list(read_records(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        list(read_records(path))

"""Other formats become records that the reader of records takes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from mobillama_v import prompt
from mobillama_v.cli.data import app
from mobillama_v.conversation import MALFORMED
from mobillama_v.errors import DataError
from mobillama_v.train.data import convert
from mobillama_v.train.data.convert import NO_TEXT, Options, Pair, read, records_of
from mobillama_v.train.data.folders import NO_CAPTION
from mobillama_v.train.data.preprocess import MISSING, Problem
from mobillama_v.train.data.records import read_records


def run(*args: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["convert", *map(str, args)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def problems(source: Path, **options: Any) -> list[tuple[str, str]]:
    """The place and kind of each row that is left out."""
    return [(each.place, each.kind) for each in read(source, Options(**options)) if isinstance(each, Problem)]


def turns(path: Path) -> list[list[str]]:
    return [[message.text for message in record.messages] for record in read_records(path)]


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('picture,q,a\na.png,"What, then?",A cat\n,Hi,Ho\na.png,<image> Two?,"Yes\nno"\n')
    output = run(tmp_path / "a.csv", tmp_path / "a.json", "--image", "picture", "--question", "q", "--answer", "a")
    assert "3 records" in output and "1 of them are text only" in output
    assert turns(tmp_path / "a.json") == [["\nWhat, then?", "A cat"], ["Hi", "Ho"], ["\nTwo?", "Yes\nno"]]
    assert [record.images for record in read_records(tmp_path / "a.json")] == [("a.png",), (), ("a.png",)]
    rows = [{"id": 7, "image": "b.png", "question": "How many?", "answer": 2}]
    other = {"images": ["b.png"], **{key: rows[0][key] for key in ("id", "question", "answer")}}
    for name, text in (("b.json", json.dumps(rows)), ("b.jsonl", json.dumps(rows[0])), ("c.jsonl", json.dumps(other))):
        (tmp_path / name).write_text(text)
        run(tmp_path / name, tmp_path / "out.jsonl", "--short")
        (record,) = read_records(tmp_path / "out.jsonl")
        assert (record.id, record.images) == ("7", ("b.png",))
        assert record.messages[0].text == "\nHow many?\nAnswer the question using a single word or phrase."
    with pytest.raises(
        DataError, match=r"line 2 has no column question, answer; its columns are picture, q, a: .*; no"
    ):
        run(tmp_path / "a.csv", tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps({"1": rows[0], "2": rows[0]}))
    with pytest.raises(DataError, match="an object that holds records by their names; write them as a list"):
        run(tmp_path / "a.json", tmp_path / "out.json")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image,caption\na.png,A red square.\n"),
        ("metadata.csv", "file_name,text\na.png,A red square.\n"),
        ("a.jsonl", '{"image_path": "a.png", "captions": ["A red square.", "Red."]}'),
    ],
)
def test_captions(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    run(tmp_path / name, tmp_path / "out.json", "--pick", "first")
    (record,) = read_records(tmp_path / "out.json")
    assert record.images == ("a.png",)
    assert turns(tmp_path / "out.json") == [["\nDescribe the image.", "A red square."]]
    run(tmp_path / name, tmp_path / "out.json", "--pick", "first", "--prompt", "What is it?")
    assert turns(tmp_path / "out.json") == [["\nWhat is it?", "A red square."]]


def test_no_picture_is_lost_with_its_columns_name(tmp_path: Path) -> None:
    talk = {"shown": "a.png", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    for name, text in (("a.csv", "Shown,question,answer\na.png,What?,Red\n"), ("a.jsonl", json.dumps(talk))):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=r"column 'shown' names a picture \(a\.png\).*; give --image shown\."):
            run(tmp_path / name, tmp_path / "out.json")
        run(tmp_path / name, tmp_path / "out.json", "--image", "Shown")
        (record,) = read_records(tmp_path / "out.json")
        assert record.images == ("a.png",)
    (tmp_path / "text.csv").write_text("question,answer\nWhich file?,a.png\n")
    assert "1 of them are text only" in run(tmp_path / "text.csv", tmp_path / "out.json")


def test_an_answer_is_text_and_a_row_without_is_counted(tmp_path: Path) -> None:
    votes = ["blue", "red", "red"]
    rows = [
        {"image": "a.png", "question": "Q", "answer": answer}
        for answer in (math.nan, votes, True, {"text": "x"}, None, " \n", [], 2.5, " x ")
    ]
    rows += [
        {"image": math.nan, "question": "Q", "answer": "x"},
        {"image": ["a.png", "b.png"], "question": "Q"} | rows[-1],
    ]
    rows[-1]["image"] = ["a.png", "b.png"]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{oops\n")
    output = run(tmp_path / "a.jsonl", tmp_path / "out.json", code=1)
    assert "4 records" in output and "8 rows are left out" in output and "--pick first" in output
    assert [each[-1] for each in turns(tmp_path / "out.json")] == ["true", "2.5", "x", "x"]
    assert list(read_records(tmp_path / "out.json"))[-1].images == ("a.png", "b.png")
    for pick, answer in (("first", "blue"), ("most", "red")):
        run(tmp_path / "a.jsonl", tmp_path / "out.json", "--pick", pick, code=1)
        assert turns(tmp_path / "out.json")[0][-1] == answer
    assert problems(tmp_path / "a.jsonl", pick="most") == [
        *((f"line {line}", NO_TEXT) for line in (1, 4, 5, 6, 7)),
        ("line 10", MALFORMED),
        ("line 12", convert.UNREADABLE_ROW),
    ]


def test_a_conversation_keeps_what_it_says_of_its_turns(tmp_path: Path) -> None:
    user = {"role": "user", "content": [{"type": "text", "text": "Is <image> a tag?"}, {"type": "image"}]}
    rows = [
        {"images": ["a\\b.png"], "messages": [user, {"role": "assistant", "content": "Yes.", "weight": 0}]},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                *({"role": r, "content": "x"} for r in ("user", "assistant")),
            ]
        },
        {"image": "a.png", "messages": []},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert "2 records" in run(tmp_path / "a.json", tmp_path / "out.json", code=1)
    first, second = read_records(tmp_path / "out.json")
    assert first.images == ("a/b.png",) and [message.learned for message in first.messages] == [True, False]
    assert first.messages[0] == prompt.user("Is <image> a tag?", images=1)
    assert [message.role for message in second.messages] == ["system", "user", "assistant"]


def test_vqav2(tmp_path: Path) -> None:
    asked = {
        "data_subtype": "train2014",
        "questions": [
            {"image_id": 9, "question": "Color?", "question_id": 90},
            {"image_id": 9, "question": "Cat?", "question_id": 91},
            {"image_id": 12, "question": "Dog?", "question_id": 120},
        ],
    }
    told = [{"question_id": i, "multiple_choice_answer": a} for i, a in ((90, "red"), (91, "yes"), (120, "no"))]
    questions, annotations = tmp_path / "q.json", tmp_path / "a.json"
    questions.write_text(json.dumps(asked))
    annotations.write_text(json.dumps({"annotations": told}))
    run(questions, tmp_path / "out.json", "--annotations", annotations, "--turns", "5")
    records = list(read_records(tmp_path / "out.json"))
    assert [record.images for record in records] == [
        ("COCO_train2014_000000000009.jpg",),
        ("COCO_train2014_000000000012.jpg",),
    ]
    assert turns(tmp_path / "out.json") == [["\nColor?", "red", "Cat?", "yes"], ["\nDog?", "no"]]
    run(questions, tmp_path / "out.json", "--annotations", annotations, "--image-name", "{image_id}.jpg")
    assert [record.images[0] for record in read_records(tmp_path / "out.json")] == ["9.jpg", "9.jpg", "12.jpg"]
    annotations.write_text(json.dumps({"annotations": told[:1]}))
    with pytest.raises(DataError, match="one split"):
        list(convert.vqav2(questions, annotations))
    with pytest.raises(DataError, match="no list of questions"):
        list(convert.vqav2(annotations, annotations))
    assert not list(tmp_path.glob(".*"))


def test_a_folder_of_images_and_texts(tmp_path: Path) -> None:
    for name in ("b", "a"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"This is {name}.\n")
    run(tmp_path, tmp_path / "out.jsonl")
    assert turns(tmp_path / "out.jsonl") == [["\nDescribe the image.", f"This is {name}."] for name in "ab"]
    (tmp_path / "b.txt").unlink()
    assert problems(tmp_path) == [("b.png", NO_CAPTION)]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"images without captions; put a \.txt file beside each, or each class"):
        problems(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "cat" / "a.png")
    assert problems(tmp_path) == [("b.png", NO_CAPTION)]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        problems(tmp_path / "none")


def test_hugging_face_datasets_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    picture = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "a.png"}
    rows = [
        {"image": picture, "question": "Color?", "answer": ["red", "pink"]},
        {"image": picture, "question": "Blue?", "answer": ["no"]},
        {"image": None, "question": "Hi", "answer": ["Ho"]},
    ]
    found = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": found}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    found.to_parquet(str(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"))
    for folder in ("saved", "hub"):
        out = tmp_path / f"{folder}.json"
        run(tmp_path / folder, out, "--split", "train", "--pick", "first")
        assert turns(out) == [["\nColor?", "red"], ["\nBlue?", "no"], ["Hi", "Ho"]]
        images = list((tmp_path / f"{folder}-images").iterdir())
        assert [image.read_bytes() for image in images] == [picture["bytes"]]
        assert next(read_records(out)).images == (images[0].name,)
    with pytest.raises(DataError, match="has the splits train"):
        problems(tmp_path / "saved", split="test")
    with pytest.raises(DataError, match="no column words; its columns are image, question, answer"):
        run(tmp_path / "hub", tmp_path / "out.json", "--question", "words")
    found.to_parquet(str(tmp_path / "hub" / "data" / "train_more-00000-of-00001.parquet"))
    images = tmp_path / "i"
    assert len(list(read(tmp_path / "hub", Options(images=images, split="train")))) == 3
    for split in (None, "tra"):  # never two splits as one, and no part of a name
        with pytest.raises(DataError, match="has the splits train, train_more; choose one"):
            problems(tmp_path / "hub", split=split)
    label = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    many = [{"image": picture, "label": 1}, {"image": {"bytes": None, "path": str(tmp_path / "a.png")}, "label": 0}]
    datasets.Dataset.from_list(many, features=label).to_parquet(str(tmp_path / "many.parquet"))
    (tmp_path / "a.png").unlink()
    classes = list(read(tmp_path / "many.parquet", Options(images=images, answer="label", prompt="What?")))
    assert [each.answer if isinstance(each, Pair) else each.kind for each in classes] == ["dog", MISSING]
    (tmp_path / "many.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="cannot be read"):
        problems(tmp_path / "many.parquet", images=images)


def test_text_alone_is_not_grouped_and_images_are() -> None:
    pairs = [Pair("1", ("a",), "p", "q"), Pair("2", ("a",), "r", "s"), Pair("3", ("a",), "t", "u")]
    pairs += [Pair("4", (), "v", "w"), Pair("5", (), "x", "y")]
    bad: list[Problem] = []
    found = list(records_of(pairs, turns=2, left_out=bad.append))
    assert not bad
    assert [(each["id"], len(each["conversations"]), each.get("image")) for each in found] == [
        ("1", 4, "a"),
        ("3", 2, "a"),
        ("4", 2, None),
        ("5", 2, None),
    ]

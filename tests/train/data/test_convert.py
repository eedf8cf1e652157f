"""Other formats become records that the reader of records takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mobillama_v.cli.data import app
from mobillama_v.errors import DataError
from mobillama_v.train.data import convert
from mobillama_v.train.data.convert import Pair, records_of
from mobillama_v.train.data.records import read_records


def run(*args: str | Path) -> str:
    result = CliRunner().invoke(app, ["convert", *map(str, args)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def turns(path: Path) -> list[list[str]]:
    return [[message.text for message in record.messages] for record in read_records(path)]


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('picture,q,a\na.png,"What, then?",A cat\n,Hi,Ho\na.png,<image> Two?,"Yes\nno"\n')
    output = run(tmp_path / "a.csv", tmp_path / "a.json", "--image", "picture", "--question", "q", "--answer", "a")
    assert "3 records" in output
    assert turns(tmp_path / "a.json") == [["\nWhat, then?", "A cat"], ["Hi", "Ho"], ["\nTwo?", "Yes\nno"]]
    assert [record.images for record in read_records(tmp_path / "a.json")] == [("a.png",), (), ("a.png",)]
    rows = [{"id": 7, "image": "b.png", "question": "How many?", "answer": 2}]
    for name, text in (("b.json", json.dumps(rows)), ("b.jsonl", json.dumps(rows[0]) + "\n")):
        (tmp_path / name).write_text(text)
        run(tmp_path / name, tmp_path / "out.jsonl", "--short")
        (record,) = read_records(tmp_path / "out.jsonl")
        assert (record.id, record.images) == ("7", ("b.png",))
        assert record.messages[0].text == "\nHow many?\nAnswer the question using a single word or phrase."
    with pytest.raises(DataError, match=r"line 2 has no column question, answer; its columns are picture, q, a:"):
        list(convert.table(tmp_path / "a.csv"))


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
    with pytest.raises(DataError, match=r"b\.txt cannot be read"):
        list(convert.captions(tmp_path))


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
        run(tmp_path / folder, out, "--split", "train")
        assert turns(out) == [["\nColor?", "red"], ["\nBlue?", "no"], ["Hi", "Ho"]]
        images = list((tmp_path / f"{folder}-images").iterdir())
        assert [image.read_bytes() for image in images] == [picture["bytes"]]
        assert next(read_records(out)).images == (images[0].name,)
    with pytest.raises(DataError, match="has the splits train"):
        list(convert.hugging_face(tmp_path / "saved", images=tmp_path / "i", split="test"))
    with pytest.raises(DataError, match="no column words; its columns are image, question, answer"):
        list(convert.hugging_face(tmp_path / "hub", images=tmp_path / "i", question="words"))
    found.to_parquet(str(tmp_path / "hub" / "data" / "train_more-00000-of-00001.parquet"))
    assert len(list(convert.hugging_face(tmp_path / "hub", images=tmp_path / "i", split="train"))) == 3
    for split in (None, "tra"):  # never two splits as one, and no part of a name
        with pytest.raises(DataError, match="has the splits train, train_more; choose one"):
            list(convert.hugging_face(tmp_path / "hub", images=tmp_path / "i", split=split))
    many = [{"image": ["a.png"], "question": "How many?", "answer": "One"}]
    datasets.Dataset.from_list(many).save_to_disk(str(tmp_path / "many"))
    with pytest.raises(DataError, match="holds a list, no image"):
        list(convert.hugging_face(tmp_path / "many", images=tmp_path / "i"))
    (tmp_path / "many" / "data-00000-of-00001.arrow").write_bytes(b"no table")
    with pytest.raises(DataError, match="cannot be read"):
        list(convert.hugging_face(tmp_path / "many", images=tmp_path / "i"))


def test_text_alone_is_not_grouped_and_images_are() -> None:
    pairs = [Pair("1", "a", "p", "q"), Pair("2", "a", "r", "s"), Pair("3", "a", "t", "u"), Pair("4", None, "v", "w")]
    pairs.append(Pair("5", None, "x", "y"))
    found = list(records_of(pairs, turns=2))
    assert [(each["id"], len(each["conversations"]), each.get("image")) for each in found] == [
        ("1", 4, "a"),
        ("3", 2, "a"),
        ("4", 2, None),
        ("5", 2, None),
    ]

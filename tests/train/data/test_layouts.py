"""The same forty questions about pictures, in every layout in which people have them, become the same records."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from mobillama_v.cli.main import app
from mobillama_v.train.data.records import read_records

COLORS = {"red": (220, 30, 30), "grün": (30, 200, 60), "light blue": (120, 140, 250), "“off” white": (230, 230, 220)}
QUESTION = "Welche Größe, what color?"
ROWS = [(f"pictures/{i}.png", QUESTION, list(COLORS)[i % len(COLORS)]) for i in range(40)]
HEAD = ("image", "question", "answer")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pictures, each of them other bytes."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "pictures").mkdir()
    for i, (path, _, answer) in enumerate(ROWS):
        Image.new("RGB", (16 + i, 20), COLORS[answer]).save(folder / path)
    return folder


def table(name: str, encoding: str, delimiter: str, *, head: tuple[str, ...] = HEAD, lead: str = "") -> Any:
    def write(root: Path, folder: Path) -> list[str | Path]:
        with open(folder / name, "w", encoding=encoding, newline="") as file:
            file.write(lead)
            rows = csv.writer(file, delimiter=delimiter, lineterminator="\r\n")
            rows.writerow(head)
            rows.writerows((path.replace("/", "\\") if i % 3 else path, *rest) for i, (path, *rest) in enumerate(ROWS))
        return [folder / name]

    return write


def entries(name: str, entry: Callable[[str, str, str], Any], *options: str, **dump: Any) -> Any:
    """A JSON list, or with ``lines`` one value after the other."""

    def write(root: Path, folder: Path) -> list[str | Path]:
        lines = dump.pop("lines", False)
        values = [entry(*row) for row in ROWS]
        text = "\n".join(json.dumps(each, **dump) for each in values) if lines else json.dumps(values, **dump)
        (folder / name).write_text(text, encoding="utf-8")
        return [folder / name, *options]

    return write


def turns(question: str, answer: str, *, roles: tuple[str, str] = ("human", "gpt")) -> list[dict[str, str]]:
    return [{"from": roles[0], "value": question}, {"from": roles[1], "value": answer}]


def chat(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def parts(text: str, *, image: bool = False) -> list[dict[str, Any]]:
    """Hugging Face's, as a table stores them: every part has all keys."""
    return [{"type": "image", "text": None, "index": 0}] * image + [{"type": "text", "text": text, "index": None}]


def coco(root: Path, folder: Path) -> list[str | Path]:
    images = [{"id": 100 + i, "file_name": path} for i, (path, *_) in enumerate(ROWS)]
    captions = [{"id": i, "image_id": 100 + i, "caption": f"{answer}\n"} for i, (*_, answer) in enumerate(ROWS)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions[::-1]}))
    return [folder / "captions.json", "--prompt", QUESTION]


def vqav2(root: Path, folder: Path) -> list[str | Path]:
    asked = [{"image_id": i, "question_id": i, "question": QUESTION} for i in range(40)]
    answered = [{"question_id": i, "multiple_choice_answer": answer} for i, (*_, answer) in enumerate(ROWS)]
    (folder / "q.json").write_text(json.dumps({"questions": asked}))
    (folder / "a.json").write_text(json.dumps({"annotations": answered}))
    return [folder / "q.json", "--annotations", folder / "a.json", "--image-name", "pictures/{image_id}.png"]


def folders(texts: bool) -> Any:
    """A folder of captions, or of classes."""

    def write(root: Path, folder: Path) -> list[str | Path]:
        for i, (path, _, answer) in enumerate(ROWS):
            image = folder / "set" / (f"part {i % 3}" if texts else answer.replace(" ", "_")) / f"{i}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes((root / path).read_bytes())
            if texts:
                image.with_suffix(".txt").write_text(f"{answer}\n", encoding="utf-8")
        return [folder / "set", "--prompt", QUESTION]

    return write


def dataset(entry: Callable[[Any, str, str], Any], *, saved: str, column: str = "image") -> Any:
    """A Hugging Face dataset: ``saved`` is the name of a parquet file, or empty for ``save_to_disk``."""

    def write(root: Path, folder: Path) -> list[str | Path]:
        datasets = pytest.importorskip("datasets")
        picture = datasets.Image()
        rows = [
            entry({"bytes": (root / path).read_bytes(), "path": None}, question, answer)
            for path, question, answer in ROWS
        ]
        found = datasets.Dataset.from_list(rows)
        found = found.cast_column(column, [picture] if column == "images" else picture)
        if saved:
            (folder / saved).parent.mkdir(parents=True, exist_ok=True)
            found.to_parquet(str(folder / saved))
        else:
            found.save_to_disk(str(folder / "saved"))
        return [folder / (saved if "/" not in saved else saved.split("/")[0]) if saved else folder / "saved"]

    return write


LAYOUTS: dict[str, Callable[[Path, Path], list[str | Path]]] = {
    "comma": table("a.csv", "utf-8-sig", ","),
    "semicolon, sep=": table("a.csv", "utf-8", ";", lead="sep=;\r\n"),
    "semicolon, cp1252": table("a.csv", "cp1252", ";"),
    "UTF-16 text": table("a.txt", "utf-16", "\t"),
    "tsv, headers": table("a.TSV", "utf-8", "\t", head=(" Image", "QUESTION ", "Answer")),
    "objects": entries("a.json", lambda *row: dict(zip(("Image", *HEAD[1:]), row, strict=True))),
    "lines": entries("a.jsonl", lambda *row: dict(zip(HEAD, row, strict=True)), lines=True),
    "pretty objects": entries("a.json", lambda *row: dict(zip(HEAD, row, strict=True)), lines=True, indent=2),
    "answers": entries("a.json", lambda i, q, a: {"image": i, "question": q, "answer": ["x", a, a]}, "--pick", "most"),
    "COCO": coco,
    "VQAv2": vqav2,
    "captions": folders(True),
    "classes": folders(False),
    "LLaVA": entries("a.json", lambda i, q, a: {"image": i, "conversations": turns(f"{q}\n<image>", a)}),
    "ShareGPT": entries(
        "a.jsonl",
        lambda i, q, a: {"images": [i], "conversations": turns(f"<image>{q}", a, roles=("user", "assistant"))},
        lines=True,
    ),
    "OpenAI": entries(
        "a.json", lambda i, q, a: {"messages": chat([*parts(q), {"type": "image_url", "image_url": {"url": i}}], a)}
    ),
    "pairs": entries("a.json", lambda i, q, a: {"image": i, "texts": [{"user": q, "assistant": a, "source": "s"}]}),
    "parquet": dataset(lambda *row: dict(zip(HEAD, row, strict=True)), saved="one.parquet"),
    "saved": dataset(lambda *row: dict(zip(HEAD, row, strict=True)), saved=""),
    "the_cauldron": dataset(
        lambda i, q, a: {"images": [i], "texts": [{"user": q, "assistant": a, "source": "s"}]},
        saved="set/train-00000-of-00001.parquet",
        column="images",
    ),
    "FineVision": dataset(
        lambda i, q, a: {"images": [i], "texts": [{"user": q, "assistant": a}], "source": "s", "relevance_min": 5},
        saved="one.parquet",
        column="images",
    ),
    "LLaVA-OneVision": dataset(
        lambda i, q, a: {"id": "x", "image": i, "conversations": turns(f"<image>\n{q}", a), "data_source": "s"},
        saved="set/data/train-00000-of-00001.parquet",
    ),
    "vsft": dataset(
        lambda i, q, a: {"images": [i], "messages": chat(parts(q, image=True), parts(a))},
        saved="one.parquet",
        column="images",
    ),
}


def run(*args: str | Path) -> str:
    result = CliRunner().invoke(app, [*map(str, args)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def converted(layout: str, root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The records of a layout, and the folder of their pictures."""
    with contextlib.suppress(ImportError):  # where they are not installed, no layout needs them
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    source, *options = LAYOUTS[layout](root, folder)
    out = folder / "records.json"
    assert "40 records" in run("data", "convert", source, out, *options)
    extracted = folder / "records-images"
    return out, extracted if extracted.is_dir() else folder / "set" if (folder / "set").is_dir() else root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_the_same_records(layout, root, tmp_path, monkeypatch) -> None:
    out, images = converted(layout, root, tmp_path, monkeypatch)
    content = {(root / path).read_bytes(): answer for path, _, answer in ROWS}
    found = {}
    for record in read_records(out):
        (image,) = record.images
        question, answer = record.messages
        assert (question.text.strip(), question.images) == (QUESTION, 1)
        found[(images / image).read_bytes()] = answer.text
    assert found == content
    said = run("data", "check", out, "--image-root", images)
    assert "40 records, 40 images in good ones; 0 records are bad" in said


QUICK = ("semicolon, cp1252", "classes", "vsft")


@pytest.mark.parametrize(
    "layout", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in LAYOUTS]
)
def test_what_was_converted_is_learned_and_described(layout, root, start_folder, tmp_path, monkeypatch) -> None:
    out, images = converted(layout, root, tmp_path, monkeypatch)
    said = run(
        *("train", "nano-finetune", f"model.start={start_folder}", f"data.json={out}", f"data.image_root={images}"),
        *("train.max_steps=1", "train.pack_tokens=256", "data.max_length=256", "train.log_steps=1"),
        f"output={tmp_path / 'run'}",
    )
    assert "step 1/1" in said
    picture = next(path for path in sorted(images.rglob("*")) if path.is_file() and path.suffix != ".txt")
    assert run("describe", picture, "--model", tmp_path / "run" / "final", "--max-new-tokens", "3") is not None


@pytest.mark.parametrize("layout", ["ShareGPT", "OpenAI", "pairs"])
def test_a_training_reads_conversations_as_they_are(layout, root, tmp_path) -> None:
    (source,) = LAYOUTS[layout](root, tmp_path)
    assert "0 records are bad" in run("data", "check", source, "--image-root", root)

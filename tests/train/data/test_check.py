"""The check of data: every spoiled record is named and nothing else; what is written is what was good."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobillama_v.conversation import BLANKS, COUNT, EMPTY, MALFORMED, NO_QUESTION, ORDER
from mobillama_v.errors import DataError
from mobillama_v.json_stream import record_texts
from mobillama_v.train.data.check import check, write_clean
from mobillama_v.train.data.encoding import TOO_LONG, Encoding
from mobillama_v.train.data.preprocess import DUPLICATE, MISSING, UNREADABLE

HUMAN = {"from": "human", "value": "<image>\nWhat?"}


def good(i: int, image: str | None = None) -> dict[str, Any]:
    turns = [HUMAN, {"from": "gpt", "value": f"A cat, number {i}."}]
    return {"id": f"g{i}", "image": image or f"{i % 3}.png", "conversations": turns}


def spoiled() -> dict[str, tuple[str, Any]]:
    """A spoiled record of every kind, by its id."""
    gpt = good(0)["conversations"][1]
    return {
        "missing": (MISSING, good(101, "none.png")),
        "nul": (MISSING, good(102, "a\0b.png")),
        "cut": (UNREADABLE, good(103, "cut.png")),
        "text": (UNREADABLE, good(104, "text.png")),
        "reversed": (ORDER, good(0) | {"conversations": [gpt, HUMAN]}),
        "unanswered": (ORDER, good(0) | {"conversations": [HUMAN, gpt, HUMAN | {"value": "So?"}]}),
        "empty": (EMPTY, good(0) | {"conversations": [HUMAN, {"from": "gpt", "value": "\n"}]}),
        "few": (COUNT, good(0) | {"image": []}),
        "many": (COUNT, good(0) | {"image": ["0.png", "1.png"]}),
        "long": (
            TOO_LONG,
            good(0)
            | {
                "image": [f"{i % 3}.png" for i in range(17)],
                "conversations": [{"from": "human", "value": "<image>" * 17}, gpt],
            },
        ),
        "twice": (DUPLICATE, good(7)),
        "bot": (MALFORMED, good(0) | {"conversations": [HUMAN, {"from": "narrator", "value": "x"}]}),
        "nothing": (MALFORMED, {}),
        "half \ud83d": (MALFORMED, {}),
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for i in range(3):
        Image.effect_noise((40, 40), 50).save(root / f"{i}.png")
    (root / "cut.png").write_bytes((root / "0.png").read_bytes()[:200])
    (root / "text.png").write_text("no image")
    return root


@pytest.fixture
def encoding(start_folder: Path) -> Encoding:
    return Encoding(start_folder / "tokenizer.json", 1, 2, 0, "plain", 16, 256)


def write(path: Path, records: list[Any]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return path


def mix() -> list[Any]:
    """Good records with the spoiled ones between them."""
    bad = [record | {"id": name} for name, (_, record) in spoiled().items()]
    return (
        [good(i) for i in range(8)] + [each for i in range(8, 20) for each in (*bad[i - 8 : i - 7], good(i))] + bad[12:]
    )


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_every_spoiled_record_is_named_and_nothing_else(suffix, images, encoding, tmp_path) -> None:
    path = write(tmp_path / f"data{suffix}", mix())
    report = check([path], image_root=images, encoding=encoding)
    assert {problem.record: problem.kind for problem in report.problems} == {
        name: kind for name, (kind, _) in spoiled().items()
    }
    assert report.records == 34
    order = [each["id"] for each in mix()]
    assert [problem.record for problem in report.problems] == [name for name in order if not name.startswith("g")]
    for problem in report.problems:
        assert str(path) in problem.reason
        assert "\n" not in problem.reason
    clean = tmp_path / f"clean{suffix}"
    assert write_clean(report, clean) == 20
    values = [json.loads(text) for _, text in record_texts(clean)]
    assert values == [good(i) for i in range(20)]
    again = check([clean], image_root=images, encoding=encoding)
    assert (again.problems, again.records, again.images) == ([], 20, 3)
    with pytest.raises(DataError, match="one of the files"):
        write_clean(report, path)


def test_what_is_not_asked_for_is_not_looked_for(images, tmp_path) -> None:
    path = write(tmp_path / "data.json", mix())
    names = {problem.record for problem in check([path], image_root=images, images="exists").problems}
    assert names == set(spoiled()) - {"cut", "text", "long"}
    names = {problem.record for problem in check([path], image_root=images, images="skip").problems}
    assert names == set(spoiled()) - {"cut", "text", "long", "missing", "nul"}


def test_processes_find_what_one_finds_in_the_same_order(images, encoding, tmp_path) -> None:
    records = [good(i) | {"id": i} for i in range(1500)]
    records[30]["conversations"] = []
    records[1400] = records[3]
    first = write(tmp_path / "a.jsonl", records)
    second = write(tmp_path / "b.json", [good(5), good(2000)])
    told: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))

    reports = [
        check([first, second], image_root=images, encoding=encoding, workers=workers, progress=progress)
        for workers in (1, 2)
    ]
    assert reports[0] == reports[1]
    assert [problem.place for problem in reports[0].problems] == ["line 31", "line 1401", "number 1"]
    assert "a.jsonl, line 6" in reports[0].problems[2].reason
    assert all(0 <= done <= total for _, done, total in told)


def test_lines_that_are_no_json_are_problems_and_a_broken_list_an_error(images, tmp_path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(good(0)) + "\n{oops\n\n[1]\n" + json.dumps(good(1)) + "\n")
    report = check([path], image_root=images)
    assert [(each.place, each.record, each.kind) for each in report.problems] == [
        ("line 2", "line 2", MALFORMED),
        ("line 4", "line 4", MALFORMED),
    ]
    path.write_text('[\n{"id": 1},\n{"id" 2}]')
    with pytest.raises(DataError, match=r"not valid JSON \(line 3: Expecting ':' delimiter\)"):
        check([path], image_root=images)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mobillama_v", "data", *args], capture_output=True, text=True, cwd="/")


def test_the_command(nano_like: Path, images: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "data.json", mix())
    report, clean = tmp_path / "report.json", tmp_path / "clean.json"
    args = ("check", str(path), "--image-root", str(images), "--report", str(report), "--clean", str(clean))
    done = run(*args)
    assert (done.returncode, done.stderr) == (1, "")
    assert "34 records" in done.stdout and "13 records are bad" in done.stdout
    found = json.loads(report.read_text())
    assert found["kinds"][MALFORMED] == 3
    assert {each["record"] for each in found["problems"]} == set(spoiled()) - {"long"}
    clean = write(tmp_path / "good.json", [good(i) for i in range(5)])
    done = run("check", str(clean), "--image-root", str(images), "--model", str(nano_like), "--max-length", "300")
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 records" in done.stdout and "tokens" in done.stdout
    for wrong in (("check", "/none.json"), ("check", str(clean), "--model", str(nano_like), "--max-length", "9999")):
        done = run(*wrong)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_what_reading_changes_is_counted(images: Path, encoding: Encoding, tmp_path: Path) -> None:
    answer = {"from": "gpt", "value": " A cat.\n"}
    records = [
        good(0),
        good(1) | {"conversations": [answer, HUMAN, answer]},
        good(2) | {"conversations": [HUMAN, answer]},
    ]
    records.append(good(0) | {"conversations": [HUMAN, {"from": "gpt", "value": "x" * 400}]})
    path = write(tmp_path / "data.json", records)
    report = check([path], image_root=images, encoding=encoding)
    assert (report.problems, report.notes, report.shortened) == ([], {BLANKS: 2, NO_QUESTION: 1}, 1)
    assert (
        "2 records: blanks around an answer were removed" in run("check", str(path), "--image-root", str(images)).stdout
    )

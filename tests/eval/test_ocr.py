"""Words read in pictures become the tokens of prompts, and are read once."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from signs import sign
from typer.testing import CliRunner

import official
from mobillama_v.cli.main import app
from mobillama_v.errors import ConfigError, DataError
from mobillama_v.eval import ocr
from mobillama_v.eval.benchmarks.base import SHORT_ANSWER, Benchmark
from mobillama_v.eval.benchmarks.registry import get
from mobillama_v.eval.evaluate import Model, run
from mobillama_v.ocr import library

HAVE_IT = all(importlib.util.find_spec(name) for name in ("rapidocr", "onnxruntime"))


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Three questions about two pictures."""
    folder = tmp_path / "mine"
    folder.mkdir()
    sign(("OPEN", (30, 40, 190, 90)), ("DAILY", (30, 120, 190, 170))).save(folder / "a.png")
    Image.new("RGB", (64, 64), "green").save(folder / "b.png")
    rows = [("a.png", "What does the sign say?"), ("a.png", "Is it shut?"), ("b.png", "What is written here?")]
    lines = [{"id": i, "image": image, "text": text, "answer": "open"} for i, (image, text) in enumerate(rows)]
    official.dump_lines(folder / "questions.jsonl", lines)
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A reader that finds the name of the file in every picture; gives the names of those that it read."""
    read: list[str] = []

    class Reader:
        def read(self, path: Path) -> list[str]:
            from mobillama_v.images import load_image

            load_image(path)
            read.append(path.name)
            return [path.stem.upper(), "x"]

    monkeypatch.setattr(ocr, "Reader", Reader)
    monkeypatch.setattr(ocr, "library", lambda: "rapidocr 9.9")
    return read


@pytest.mark.skipif(not HAVE_IT, reason="the extra ocr is not installed")
def test_a_run_tells_which_words_were_read_and_by_what(questions: Path, tmp_path: Path) -> None:
    command = ("eval", "run", "custom", "-d", questions, "--ocr", "rapidocr", "--prompt", "short", "-o", tmp_path / "r")
    code, out, err = call(*command, "--max-new-tokens", 4)
    assert code == 0 and f"  ocr: {library()}" in out, err
    assert "prompt: {question}\\nReference OCR token: {tokens}\\nAnswer the question" in out
    lines = [json.loads(line) for line in (tmp_path / "r/custom/predictions.jsonl").read_text().splitlines()]
    assert lines[0]["prompt"] == f"What does the sign say?\nReference OCR token: OPEN, DAILY{SHORT_ANSWER}"
    assert lines[2]["prompt"] == f"What is written here?\nReference OCR token: {SHORT_ANSWER}"
    page = (tmp_path / "r/report.html").read_text()
    assert f"OCR {library()}" in page and "OPEN, DAILY" in page  # what was asked stands in the gallery too


def read(benchmark: Benchmark, data: Path, folder: Path, model: Path) -> list[str]:
    """The prompts that were put."""
    done = run(benchmark, benchmark.load(data), folder, model=Model(str(model)), max_new_tokens=1)
    assert [each.prompt for each in done.examples] == [done.answers[each.id]["prompt"] for each in done.examples]
    return [each.prompt for each in done.examples]


def test_every_picture_is_read_once_also_over_several_starts(
    questions: Path, nano_like: Path, tmp_path: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (questions / "b.png").read_bytes()
    (questions / "b.png").write_bytes(b"no picture")
    benchmark = get("custom", ocr="rapidocr")
    with pytest.raises(DataError, match=r"1 of 3 questions could not be asked: '2': .*b\.png"):
        read(benchmark, questions, tmp_path / "run", nano_like)
    assert fake == ["a.png"]
    with open(tmp_path / "run/ocr/0.jsonl", "a") as file:
        file.write('{"sha256": "cut off by a ki')
    (questions / "b.png").write_bytes(good)
    expected = [
        "What does the sign say?\nReference OCR token: A, x",
        "Is it shut?\nReference OCR token: A, x",
        "What is written here?\nReference OCR token: B, x",
    ]
    assert read(benchmark, questions, tmp_path / "run", nano_like) == expected
    assert fake == ["a.png", "b.png"]
    assert read(benchmark, questions, tmp_path / "run", nano_like) == expected  # ended, and told again
    assert fake == ["a.png", "b.png"]
    # Words that another version read would be another task.
    monkeypatch.setattr(ocr, "library", lambda: "rapidocr 10.0")
    with pytest.raises(DataError, match=r"ocr 'rapidocr 9\.9', not 'rapidocr 10\.0'"):
        read(benchmark, questions, tmp_path / "run", nano_like)


def test_processes_share_the_pictures(
    questions: Path, tmp_path: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobillama_v import distributed
    from mobillama_v.eval.store import Store

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "all_gather", lambda value: [{questions / "a.png": ["THEIRS"]}, value])
    (tmp_path / "run").mkdir()
    examples = get("custom").load(questions)
    told = ocr.read_pictures(examples, Store(tmp_path / "run"))
    assert fake == ["b.png"] and (tmp_path / "run/ocr/1.jsonl").is_file()
    assert [each.prompt.split(": ")[1] for each in told] == ["THEIRS", "THEIRS", "B, x"]


def test_textvqa_is_asked_with_words_that_were_read(nano_like: Path, tmp_path: Path, fake: list[str]) -> None:
    data = official.textvqa(tmp_path)
    (data / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    benchmark = get("textvqa", ocr="rapidocr")
    assert benchmark.settings()["ocr"] == "rapidocr 9.9"
    first = read(benchmark, data, tmp_path / "run", nano_like)[0]
    image = benchmark.load(data)[0].images[0].stem.upper()
    assert first == f"What does the sign say?\nReference OCR token: {image}, x{SHORT_ANSWER}"
    with pytest.raises(ConfigError, match="leave out --ocr rapidocr"):
        get("textvqa", ocr="rapidocr", questions=tmp_path / "llava.jsonl")


def test_without_the_library_it_is_named_before_anything_is_asked(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    code, _, err = call("eval", "run", "custom", "-d", questions, "--ocr", "rapidocr", "-o", tmp_path / "run")
    assert code == 2 and not (tmp_path / "run").exists()
    assert err == "error: reading the words in pictures needs rapidocr: pip install 'mobillama-v[ocr]'.\n"


def test_what_cannot_be_is_refused(questions: Path) -> None:
    with pytest.raises(ConfigError, match="none or read by rapidocr, not 'rosetta'"):
        get("custom", ocr="rosetta")
    code, _, err = call("eval", "score", "custom", "-d", questions, "-p", questions, "--ocr", "rapidocr")
    assert code == 2 and "scoring opens none, so leave it out" in err

"""The pages say what is so: their commands and their code run as they stand, and what they show is what comes."""

from __future__ import annotations

import csv
import ctypes
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

import official
from mobillama_v.eval.benchmarks import registry
from mobillama_v.eval.benchmarks.base import REGISTERED
from mobillama_v.interop.formats import EXPORTERS
from mobillama_v.projector import PROJECTORS
from pages import ROOT, blocks, run_page

README = ROOT / "README.md"
NANO = ROOT / "mobillama_v" / "weights" / "nano"
SHAPES = ROOT / "demo" / "examples" / "shapes.png"
ELSEWHERE = {"tutorial-digits.md", "training.md"}  # tests/train runs these pages
PAGES = [README, *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in ELSEWHERE)]
TABLE_ROW = re.compile(r'^\| <img src="(.+?)".*?> \| (.+?) \| (.+?) \| (yes|no) \|$', re.MULTILINE)
PATH = re.compile(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|cpp|h|inc|yml|yaml|css|conf|service|ipynb))`")


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a reader, with what the commands of the pages name. What the pages register is forgotten."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "cat.jpg", "receipt.jpg", "sign.png", "holiday/beach.jpg", "images/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(SHAPES, tmp_path / name)
    shutil.copytree(NANO, tmp_path / "path" / "to" / "a" / "model")
    official.write_all(tmp_path / "path" / "to" / "benchmarks")
    turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A ring."}]
    Path("records.json").write_text(json.dumps([{"id": "1", "image": "1.jpg", "conversations": turns}]))
    Path("mine.csv").write_text("image,question,answer\n1.jpg,What is this?,a ring\n1.jpg,Where is it?,at the top\n")
    Path("questions.csv").write_text("id,image,question,answer\n1,photo.jpg,What is this?,ring\n")
    colors = Path("path/to/colors")
    colors.mkdir()
    shutil.copy(SHAPES, colors / "1.png")
    (colors / "colors.csv").write_text("id,image,thing,question,color\n1,1.png,cross,What color is the cross?,orange\n")
    found = [{"question_id": 34602, "text": "nikon"}]
    Path("predictions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in found))
    registry.classes()  # registers those of the project
    with patch.dict(PROJECTORS), patch.dict(REGISTERED), patch.dict(EXPORTERS):
        yield tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_tells_to_run_runs(page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, monkeypatch)


@pytest.mark.parametrize("page", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.stem)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = set(PATH.findall(page.read_text(encoding="utf-8"))) - {block.file for block in blocks(page)}
    missing = [
        name for name in sorted(named) if not any((base / name).exists() for base in (ROOT, ROOT / "mobillama_v"))
    ]
    assert not missing


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_the_kernel_path_of_the_page_is_one(tmp_path: Path) -> None:
    source = tmp_path / "csrc"
    shutil.copytree(ROOT / "mobillama_v" / "backends" / "native" / "csrc", source)
    file, change = (block for block in blocks(ROOT / "docs" / "howto-kernel.md") if block.language in ("cpp", "diff"))
    (source / Path(file.file).name).write_text(file.text)
    for part in change.text.removeprefix("--- ").split("--- "):
        name, *lines = part.splitlines()
        path = source / Path(name).name
        before = "\n".join(line[1:] for line in lines if line[0] == " ")
        assert path.read_text().count(before + "\n") == 1
        path.write_text(path.read_text().replace(before, "\n".join(line[1:] for line in lines)))
    library = tmp_path / "toy.so"
    flags = ["-std=c++17", "-O0", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    subprocess.run(["c++", *flags, *map(str, sorted(source.glob("*.cpp"))), "-o", str(library)], check=True)
    engine = ctypes.CDLL(str(library))
    engine.mv_path_name.restype, engine.mv_thread_pool_new.restype = ctypes.c_char_p, ctypes.c_void_p
    names = [engine.mv_path_name(i) for i in range(9)]
    assert names[names.index(b"toy") + 1 :][0] == b"portable"
    assert engine.mv_thread_pool_new(1, b"toy")


def test_the_links_of_the_front_pages_lead_somewhere() -> None:
    for page in (README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_the_answers_in_the_readme_are_those_of_nano() -> None:
    from mobillama_v import load

    rows = TABLE_ROW.findall(README.read_text(encoding="utf-8"))
    assert [right for *_, right in rows] == ["yes", "yes", "no"]
    assistant = load("nano")
    given = [assistant.ask([ROOT / picture], question).text for picture, question, *_ in rows]
    assert [answer for _, _, answer, _ in rows] == given, "write these answers into the table, and judge them anew"
    shown = next(block.text for block in blocks(README) if block.language == "text")
    cat = ROOT / "docs" / "pictures" / "cat.jpg"  # which the command above it describes
    assert shown == assistant.ask([cat], "Describe the image.").text + "\n"


def test_the_version_is_the_same_wherever_it_stands() -> None:
    from mobillama_v import __version__

    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_example_that_asks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ask.py"])
    runpy.run_path(str(ROOT / "examples" / "ask.py"))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and said[1] == "How many shapes are there? 3"


def test_the_example_that_makes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mobillama_v import load

    shutil.copy(SHAPES, tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    monkeypatch.setattr(sys, "argv", ["folder_to_csv.py", str(tmp_path), str(tmp_path / "out.csv")])
    runpy.run_path(str(ROOT / "examples" / "folder_to_csv.py"))
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows["a.png"]["description"] == load("nano").ask([SHAPES], "Describe the image.").text
    assert "not an image" in rows["b.jpg"]["error"] and not rows["b.jpg"]["description"]

"""The commands of docs/training.md, as they stand there.

A comment before a block says what this test does with it: ``run`` runs it, ``dry-run`` runs it with --dry-run. Blocks
marked ``gpu`` or ``network`` cannot run here; the recipes that they name are read with their keys.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mobillama_v.cli.main import app
from mobillama_v.train.recipe_files import load_recipe

TEXT = (Path(__file__).parent.parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^<!-- test: ([a-z-]+) -->\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(*kinds: str) -> list[list[str]]:
    """The words of each command in the blocks of these kinds."""
    blocks = [block.replace("\\\n", " ") for kind, block in BLOCK.findall(TEXT) if kind in kinds]
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the document takes for granted."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    for name in ("images", "pictures", "runs/mine"):
        (tmp_path / name).mkdir(parents=True)
    rows = [("0.png", "What color is it?", "red"), ("1.png", "What color is it?", "blue")]
    for (name, _, answer), place in zip(rows, ("images", "images"), strict=True):
        Image.new("RGB", (32, 24), answer).save(tmp_path / place / name)
    with open("mine.csv", "w", newline="") as file:
        csv.writer(file).writerows([("photo", "q", "a"), *rows])
    Image.new("RGB", (32, 24), "red").save("pictures/a.png")
    Path("pictures/a.txt").write_text("A red square.")
    asked = [{"question_id": i, "image_id": 7, "question": question} for i, (_, question, _) in enumerate(rows)]
    answered = [{"question_id": i, "multiple_choice_answer": answer} for i, (_, _, answer) in enumerate(rows)]
    Path("questions.json").write_text(json.dumps({"questions": asked, "data_subtype": "train2014"}))
    Path("annotations.json").write_text(json.dumps({"annotations": answered}))
    made = datasets.Dataset.from_list([{"image": None, "question": "Hi", "answer": "Hello."}])
    datasets.DatasetDict({"train": made}).save_to_disk("dataset")
    Path("held-out.json").write_text(
        json.dumps([{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}])
    )
    line = {"step": 1, "loss": 2.0, "lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 9.0}
    Path("runs/mine/metrics.jsonl").write_text(json.dumps(line) + "\n")
    return tmp_path


def test_every_block_says_what_is_tested_of_it() -> None:
    kinds = [kind for kind, _ in BLOCK.findall(TEXT)]
    assert len(kinds) == TEXT.count("```sh\n")
    assert set(kinds) == {"run", "dry-run", "gpu", "network"}


def test_what_can_run_here_does(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    for kind in ("run", "dry-run"):
        for program, *words in commands(kind):
            assert program == "mobillama-v"
            more = ["--dry-run"] if kind == "dry-run" else []
            result = CliRunner().invoke(app, [*words, *more])
            assert result.exit_code == 0, (words, result.output, result.exception)
    assert {path.name for path in folder.glob("*.json*")} >= {
        "vqa.json",
        "captions.json",
        "exported.json",
        "report.json",
    }
    assert len(json.loads(Path("clean.json").read_text())) == 2


def test_the_recipes_of_the_others_are_read() -> None:
    read = 0
    for words in commands("gpu", "dry-run"):
        starts = [i for i, word in enumerate(words) if word in ("mobillama_v.train", "train")]
        if starts:
            recipe, *overrides = words[starts[0] + 1 :]
            load_recipe(recipe, overrides).require_paths()
            read += 1
    assert read == 9


def test_extras_are_those_of_the_project() -> None:
    declared = (Path(__file__).parent.parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    for extras in re.findall(r"pip install -e '\.\[(.+?)\]'", TEXT):
        assert all(re.search(rf"^{extra} = \[", declared, re.MULTILINE) for extra in extras.split(","))

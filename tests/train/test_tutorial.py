"""The commands of the tutorial, as they stand in the document, on the first rows of its tables."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mobillama_v.cli.main import app

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROWS = 12  # of each table

pytest.importorskip("easy_vqa")
pytest.importorskip("sklearn")


def blocks() -> list[str]:
    return BLOCK.findall((ROOT / "docs" / "tutorial-digits.md").read_text(encoding="utf-8"))


def commands(block: str) -> list[list[str]]:
    """The arguments of the block's ``mobillama-v`` commands; it has no others."""
    lines = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert all(line[0] == "mobillama-v" for line in lines)
    return [line[1:] for line in lines]


def test_the_install_is_one_that_the_project_offers() -> None:
    (extras,) = re.findall(r"pip install -e '\.\[(.+?)\]' scikit-learn easy-vqa", blocks()[0])
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", declared, re.MULTILINE) for extra in extras.split(","))


def test_the_commands_work_as_they_are_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    install, tables, *rest = blocks()
    assert "pip install" in install and "mobillama-v" not in tables
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    subprocess.run(["bash", "-e", "-c", tables], check=True, env=environment)
    for name, questions in (("digits/train.csv", 1437), ("digits/test.csv", 360), ("old.csv", 300)):
        with open(name, newline="") as file:
            rows = list(csv.reader(file))
        assert len(rows) == 1 + questions
        with open(name, "w", newline="") as file:
            csv.writer(file).writerows(rows[: 1 + ROWS])

    said = {}
    for command in [each for block in rest for each in commands(block)]:
        few = ["train.max_steps=2", "train.log_steps=1"] if command[0] == "train" else []
        result = CliRunner().invoke(app, [*command, *few])
        assert result.exit_code == 0, (command, result.output, result.exception)
        said[" ".join(command[:2])] = result.stdout
    assert "0 records are bad" in said["data check"]
    assert "⟦" in said["data preview"]
    assert "step 2/2" in said["train nano-finetune"]
    assert "exact match" in said["eval run"]
    lines = (tmp_path / "runs" / "digits-after" / "custom" / "predictions.jsonl").read_text().splitlines()
    assert len([json.loads(line)["text"] for line in lines]) == ROWS
    assert said["describe digits/0.png"].strip()

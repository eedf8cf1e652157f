"""The tutorial's commands are run as they stand on its page, but the install."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import tutorial
from benchmarks.__main__ import app


def test_both_scores_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nexit 1\n```\n```sh\nmkdir runs\ncp -r ../made/* runs\n```\n")
    for number, name in enumerate(("digits-before", "digits-after", "old-before", "old-after")):
        folder = tmp_path / "made" / name / "custom"
        folder.mkdir(parents=True)
        score = {"headline": 10.0 * number, "headline_name": "exact match", "metrics": {}, "categories": {}}
        found = {"score": {**score, "correct": {}, "missing": []}, "interval_95": None, "questions": []}
        (folder / "score.json").write_text(json.dumps(found))
        (folder / "run.json").write_text(json.dumps({"benchmark": "custom"}))
    monkeypatch.setattr(tutorial, "PAGE", page)
    done = CliRunner().invoke(app, ["tutorial", str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    assert "handwritten digits: 0.00 before, 10.00 after\neasy-VQA: 20.00 before, 30.00 after\n" in done.output
    again = CliRunner().invoke(app, ["tutorial", str(tmp_path / "new")])
    assert again.exit_code == 2 and again.stderr.count("\n") == 1

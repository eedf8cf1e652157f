"""A benchmark is one class and one registration: everything else works with a new one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import toy
from mobillama_v.cli.main import app
from mobillama_v.eval.benchmarks import base, registry
from mobillama_v.eval.results import read_result


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_every_command_takes_a_new_benchmark(nano_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.REGISTERED, "toy", None)  # is taken out again at the end of the test
    base.register(toy.Toy)
    assert registry.public()[-1] == "toy" and "custom" not in registry.public()
    data, runs = tmp_path / "data" / "toy", [tmp_path / "first", tmp_path / "second"]
    code, out, _ = call("eval", "prepare", "toy", "--data", data)
    assert code == 1 and "the folder does not exist" in out
    toy.draw(data, pictures=2)
    code, out, err = call("eval", "prepare", "toy", "--data", data)
    assert code == 0 and "questions: 10" in out and "images: 2 of 2" in out, err

    for output, split in zip(runs, ("test", "val"), strict=True):
        options = ["-m", nano_like, "--split", split, "--max-new-tokens", len(split), "-o", output]
        code, out, err = call("eval", "run", "toy", "--data", data, *options)
        assert code == 0 and "Toy <b>questions</b>: " in out and "judged by: the letter e" in out, err
    found = read_result(runs[0] / "toy")
    assert found.score.headline == found.score.metrics["accuracy"]
    assert found.score.headline == 10 * sum("e" in each.text for each in found.questions)

    predictions = runs[0] / "toy" / "predictions.jsonl"
    code, out, err = call("eval", "score", "toy", "--predictions", predictions, "--data", data, "--json")
    assert code == 0 and json.loads(out)["headline"]["value"] == found.score.headline, err
    page = (runs[0] / "report.html").read_text()
    assert "By kind, % right" in page and 'class="label">odd<' in page

    code, out, err = call("eval", "compare", *runs, "--output", tmp_path / "compare.md")
    assert code == 0, err
    assert "toy, accuracy" in (tmp_path / "compare.md").read_text() and "split: 'test' and 'val'" in " ".join(
        out.split()
    )
    code, _, err = call("eval", "run", "toy", "--data", data, "-m", nano_like, "--split", "dev", "-o", tmp_path / "x")
    assert code == 2 and "Toy <b>questions</b>: there are the splits test, val, not 'dev'." in err
    code, out, err = call("eval", "run", "all", "--data", tmp_path / "data", "-m", nano_like, "-o", tmp_path / "all")
    assert code == 1 and "Toy <b>questions</b>: " in out and "gqa is left out" in err

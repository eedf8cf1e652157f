"""From a picture to the first word: all backends run the same weights, and the figures follow from the seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import picture
from benchmarks.__main__ import app
from mobillama_v.backends.native import library
from mobillama_v.cli.bench import spread


@pytest.mark.skipif(bool(library.missing()), reason="no native library")
def test_backends_take_turns_on_the_same_weights(tower_name: str, tmp_path: Path) -> None:
    command = ["picture", "--tower", tower_name, "--decoder", "nano", "--bits", "16", "--turns", "2", "--threads", "1"]
    result = CliRunner().invoke(app, [*command, "--factor", "2", "-o", str(tmp_path / "bench.json")])
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "bench.json").read_text())
    assert facts["visual_tokens"] == 4 and facts["features_differ_by"]["native"] < 1e-3  # 16 bits
    for name in picture.BACKENDS:
        found = facts["seconds"][name]
        parts = zip(found["picture"], found["prefill"], strict=True)
        assert found["first word"] == pytest.approx([sum(each) for each in parts])
        assert len(found["first word, processor"]) == 2 and name in result.stdout
    pairs = zip(facts["seconds"]["torch fp32"]["picture"], facts["seconds"]["native"]["picture"], strict=True)
    assert facts["times_as_fast"]["picture"]["native"] == pytest.approx(spread([a / b for a, b in pairs]))


@pytest.mark.parametrize("wrong", [["--tower", "RN50"], ["--tower", "none"], ["--decoder", "none"]])
def test_what_cannot_be_compared_is_refused(wrong: list[str]) -> None:
    result = CliRunner().invoke(app, ["picture", *wrong])
    assert result.exit_code == 2 and result.stderr.startswith("error: there is no") and result.stderr.count("\n") == 1

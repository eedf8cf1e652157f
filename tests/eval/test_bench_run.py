"""The bench of engines: all ways run the same weights, and the figures follow from the seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mobillama_v.cli import app
from mobillama_v.engine import library


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.skipif(bool(library.missing()), reason="no native library")
def test_all_ways_side_by_side(nano_like: Path, tmp_path: Path) -> None:
    output, plot = tmp_path / "new" / "bench.json", tmp_path / "plot" / "bench.png"
    arguments = ["--prompts", "9,30", "--new", 6, "--turns", 2, "--threads", 1, "-o", output, "--plot", plot]
    code, out, err = call("bench", "run", "-m", nano_like, *arguments)
    assert code == 0, err
    facts = json.loads(output.read_text())
    assert list(facts["ways"]) == ["native 4 bit", "native 8 bit", "torch fp32", "transformers fp32"]
    for name, way in facts["ways"].items():
        assert name in out and way["peak_rss_bytes"] > 5e7
        for length, each in way["prompts"].items():
            seconds = way["seconds"][length]
            assert len(seconds["prefill"]) == len(seconds["decode"]) == 2
            low, high = each["decode_range"]
            assert low == pytest.approx(5 / max(seconds["decode"])) and high == pytest.approx(
                5 / min(seconds["decode"])
            )
            assert low <= each["decode_tokens_per_second"] <= high
    assert facts["ways"]["transformers fp32"]["prompts"]["30"]["tokens_as_torch"] == 6  # the same model
    native = facts["ways"]["native 8 bit"]
    assert native["cached_bytes"] > 0 and native["roof_reached"] == pytest.approx(
        native["prompts"]["9"]["decode_tokens_per_second"] / native["roof_tokens_per_second"]
    )
    with Image.open(plot) as image:
        assert image.format == "PNG" and image.width > 500


def test_mistakes_are_told(nano_like: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["--prompts", "many"], "is not a list of numbers"),
        (["--prompts", "0"], "is not a list of numbers"),
        (["--ways", "abacus"], "there is no way 'abacus'"),
        (["-m", nano_like, "--prompts", 600], "do not fit the model's context of 512"),
        (["-m", tmp_path / "nothing"], "there is no model"),
    ):
        code, _, err = call("bench", "run", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, err

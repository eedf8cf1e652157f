"""The bench compares the runner with a loop that truly encodes every time, and says when answers differ."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.drawn_gqa import COLORS, draw_gqa
from benchmarks.evaluation import ALONE, RUNNER, Measured, summary, table
from mobillama_v.eval.benchmarks.registry import get


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
def test_both_methods_are_measured(nano_like: Path, tmp_path: Path, monkeypatch) -> None:
    from mobillama_v.assistant import Assistant
    from mobillama_v.reply import EncodedImage

    encoded: Counter[bool] = Counter()
    see = Assistant.encode_image
    ask = Assistant.ask
    alone = [False]

    def spy(self, image):
        if not isinstance(image, EncodedImage):
            encoded[alone[0]] += 1
        return see(self, image)

    def one(self, *arguments, **options):
        alone[0] = True
        try:
            return ask(self, *arguments, **options)
        finally:
            alone[0] = False

    monkeypatch.setattr(Assistant, "encode_image", spy)
    monkeypatch.setattr(Assistant, "ask", one)
    output = tmp_path / "new" / "bench.json"
    code, out, err = call("eval", "-m", nano_like, "--images", 3, "--batch-size", 16, "--output", output)
    assert code == 0, err
    facts = json.loads(output.read_text())
    assert encoded == {True: 60 + 1, False: 3 + 1}  # one more each to warm up
    assert facts["questions"] == 60 and facts["images"] == 3 and facts["different_answers"] == []
    assert facts["speedup"] == pytest.approx(sum(facts["seconds"]["one at a time"]) / sum(facts["seconds"]["runner"]))
    assert "Both give the same answers." in out and re.search(r"one at a time +[\d.]+ +[\d.]+ +60\n", out)


def test_different_answers_are_said() -> None:
    facts = summary({ALONE: Measured([2.0], 2, {"a": "x", "b": "y"}), RUNNER: Measured([0.5], 1, {"a": "x", "b": "z"})})
    assert facts["different_answers"] == ["b"] and facts["speedup"] == 4.0
    assert "4.0 times as fast" in table(facts) and "They differ in 1 answers." in table(facts)


def test_the_drawn_set_is_gqa_with_true_answers(tmp_path: Path) -> None:
    draw_gqa(tmp_path, images=4, seed=1)
    examples = get("gqa").load(tmp_path)
    assert len(examples) == 80 and {len(each.images) for each in examples} == {1}
    assert all(count == 20 for count in Counter(each.images for each in examples).values())
    for example in examples:  # a color that is said to be there is in the picture, and no other of those asked for is
        found = re.match(r"Is there a (\w+) (?:circle|square|triangle)\?", example.prompt)
        if found and example.answers == ("yes",):
            assert share(example.images[0], found[1]) > 0.004
        found = re.match(r"What color is the", example.prompt)
        if found:
            assert share(example.images[0], example.answers[0]) > 0.004
    again = tmp_path / "again"
    draw_gqa(again, images=4, seed=1)
    for name in ("testdev_balanced_questions.json", "images/d00003.jpg"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def share(path: Path, color: str) -> float:
    """The part of a picture that has a color."""
    pixels = np.asarray(Image.open(path)).astype(int)
    return float((np.abs(pixels - COLORS[color]).max(-1) < 25).mean())

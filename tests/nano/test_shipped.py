"""The embedded model as it is shipped: what it says of pictures that it never saw, and that every way in agrees."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobillama_v.assistant import Assistant
from mobillama_v.hub import find_model
from mobillama_v.loading import load
from nano import evaluate
from nano.build_scenes import UNSEEN_READING
from nano.scenes import draw, sample_scene

EXAMPLES = Path(__file__).parents[2] / "demo" / "examples"


@pytest.fixture(scope="module")
def nano() -> Assistant:
    return load("nano", device="cpu")


@pytest.mark.parametrize(
    ("name", "style", "seed"), [("shapes", "few", 5), ("hearts", "count", "count:10"), ("word", "word", 4)]
)
def test_the_examples_are_described_truly(nano: Assistant, name: str, style: str, seed: int | str) -> None:
    scene = sample_scene(random.Random(seed), style)
    with Image.open(EXAMPLES / f"{name}.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(draw(scene)))
    text = nano.ask([EXAMPLES / f"{name}.png"], "Describe the image.").text
    assert f"{scene.background} background" in text
    if style == "word":
        assert f"The word {scene.things[0].text} in {scene.things[0].color}" in text
    else:
        assert f"A drawing with {('three', 'four')[len(scene.things) - 3]} shapes" in text
        told = Counter(re.findall(r"(?:small|large) (\w+ \w+)", text))
        assert told == Counter(f"{thing.color} {thing.shape}" for thing in scene.things)


def test_the_command_describes_an_example() -> None:
    command = [sys.executable, "-m", "mobillama_v", "describe", str(EXAMPLES / "shapes.png"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    answer = json.loads(done.stdout)
    assert answer["text"] == load("nano").ask([EXAMPLES / "shapes.png"], "Describe the image.").text
    assert answer["finish_reason"] == "stop" and answer["tokens"]["image"] == 84 and answer["model"] == "nano"


@pytest.mark.slow
def test_held_out_questions(nano: Assistant) -> None:
    """A tenth of the model card's questions: the bound is three standard errors below its figure, 90 %."""
    tally = evaluate.held_out(nano, count=330, say=lambda text: None)
    seen = [family for family in tally.asked if family != UNSEEN_READING]
    assert tally.accuracy(seen) > 0.84
    assert all(tally.asked[family] == 30 for family in tally.asked)


def test_transformers_gives_the_same_answer(nano: Assistant) -> None:
    from transformers import pipeline

    answer = pipeline("image-text-to-text", model=str(find_model("nano")))
    picture = EXAMPLES / "shapes.png"
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": "Describe the image."}]
    found = answer(text=[{"role": "user", "content": content}], max_new_tokens=64, return_full_text=False)
    assert found[0]["generated_text"].strip() == nano.ask([picture], "Describe the image.").text


def test_batches_equal_single_questions(nano: Assistant) -> None:
    asked = ["Describe the image.", "How many shapes are there?", "Is there a red circle?"]
    together = nano.ask_batch([([EXAMPLES / "shapes.png"], text) for text in asked])
    alone = [nano.ask([EXAMPLES / "shapes.png"], text).text for text in asked]
    assert [reply.text for reply in together] == alone


def test_it_fits_the_package() -> None:
    folder = find_model("nano")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 48e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "license:" in card and "easy-VQA test" in card

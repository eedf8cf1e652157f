"""What tests of the embedded model's builds share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from nano import easyvqa


def _three_pictures(data: Path) -> None:
    folder = data / "images" / "easyvqa" / "train"
    folder.mkdir(parents=True)
    told, captions = [], []
    for i in range(3):
        Image.new("RGB", (64, 64), (80 * i, 0, 0)).save(folder / f"{i}.png")
        image = {"id": f"easy-{i}", "image": f"images/easyvqa/train/{i}.png"}
        ask = [{"from": "human", "value": "<image>\nis there a circle?"}, {"from": "gpt", "value": "no"}]
        say = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A drawing of a red circle."}]
        told.append({**image, "conversations": ask})
        captions.append({**image, "conversations": say})
    (data / "easyvqa-train-captions.json").write_text(json.dumps(captions))
    (data / "easyvqa-train.json").write_text(json.dumps(told))


@pytest.fixture
def few_easy_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures in place of easy-VQA, in the form that the converter writes."""
    monkeypatch.setattr(easyvqa, "convert", _three_pictures)

"""Occlusion: its likelihoods are the model's, and covering a part that no pixel differs in changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobillama_v.assistant import Assistant
from mobillama_v.chat_templates import TEMPLATES
from mobillama_v.demo.occlusion import CELLS, cover, importance, render
from mobillama_v.generate import Sampling
from mobillama_v.loading import load
from mobillama_v.prompt import assistant, user
from serving import RAMP, RED
from tiny import whole_logits


@pytest.fixture(scope="module")
def model(nano_like: Path) -> Assistant:
    return load(str(nano_like), device="cpu")


def test_the_likelihood_is_the_models(model: Assistant) -> None:
    messages, answer = [user("What?", images=2)], "A red circle"
    found = model.score([(order, messages) for order in ([RED, RAMP], [RAMP, RED])], answer).log_probs.sum(-1)
    whole = TEMPLATES["v1"].encode([*messages, assistant(answer)], model.tokenizer, tokens_per_image=84)
    pixels = [torch.from_numpy(model.spec.image(image)) for image in (RED, RAMP)]
    for row, order in enumerate((pixels, pixels[::-1])):
        with torch.inference_mode():
            logits = whole_logits(model.network, whole, torch.stack(order)).log_softmax(-1)
        steps = [(t - 1, label) for t, label in enumerate(whole.labels) if label >= 0]
        assert found[row] == pytest.approx(sum(float(logits[t, label]) for t, label in steps), abs=0.02)  # 16 bits
    assert found[0] != found[1]


def test_only_what_differs_matters(model: Assistant) -> None:
    side = model.spec.image.size
    plain = Image.new("RGB", (side, side), (90, 120, 150))
    answer = model.ask([plain], "What?", Sampling(8)).text
    *_, found = importance(model, [user("What?", images=1)], [model.encode_image(plain)], plain, answer)
    assert found.shape == (CELLS, CELLS) and float(np.abs(found).max()) < 1e-3
    noisy = Image.effect_noise((side, side), 90).convert("RGB")
    maps = [
        each.copy() for each in importance(model, [user("What?", images=1)], [model.encode_image(noisy)], noisy, answer)
    ]
    assert len(maps) == CELLS and float(np.abs(maps[-1]).max()) > 1e-2
    assert (maps[0][0] == maps[-1][0]).all() and not maps[0][1:].any()


def test_cover_and_render() -> None:
    square = Image.new("RGB", (70, 70), (10, 20, 30))
    square.paste((250, 240, 230), (20, 10, 30, 20))
    covered = cover(square, 1, 2)
    assert covered.getpixel((25, 15)) == (15, 24, 34) and square.getpixel((25, 15)) == (250, 240, 230)
    assert [covered.getpixel(at) for at in ((19, 15), (30, 15), (25, 9), (25, 20))] == [(10, 20, 30)] * 4
    found = np.zeros((CELLS, CELLS))
    found[1, 2], found[5, 5] = 2.0, -3.0
    shown = render(square, found)
    assert shown.getpixel((160, 96))[0] > 200 and shown.getpixel((400, 400))[0] <= 2
    assert render(square, np.zeros((CELLS, CELLS))).getpixel((160, 96))[0] <= 51

"""Generation by transformers: the tower runs once a picture, and what speculates gives the same answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mobillama_v import MobiLlamaVForConditionalGeneration, MobiLlamaVProcessor
from tiny import save_nano_like

RED = Image.new("RGB", (40, 30), (200, 40, 40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a trainer left with its cache switched off, as gradient checkpointing does."""
    folder = save_nano_like(tmp_path_factory.mktemp("models") / "trained")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_cache": False, "dtype": "float32"}))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> MobiLlamaVForConditionalGeneration:
    return MobiLlamaVForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def inputs(folder: Path) -> Any:
    return MobiLlamaVProcessor.from_pretrained(folder)(images=RED, text="What is this?")


def ask(model: Any, inputs: Any, **options: Any) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=6, do_sample=False, **options)


def test_the_tower_runs_once_a_picture(model: Any, inputs: Any, tmp_path: Path) -> None:
    runs: list[int] = []
    hook = model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    answers = []
    for options in ({}, {"use_cache": False}, {"prompt_lookup_num_tokens": 3}):
        runs.clear()
        answers.append(ask(model, inputs, **options))
        assert (len(runs) == 1) == (options != {"use_cache": False})
    hook.remove()
    assert answers[0].tolist() == answers[1].tolist() == answers[2].tolist()
    model.config.use_cache = False
    model.save_pretrained(tmp_path)
    again = MobiLlamaVForConditionalGeneration.from_pretrained(tmp_path)
    assert again.generation_config.use_cache is not False and (tmp_path / "generation_config.json").exists()
    model.config.use_cache = True


def test_assisted_generation_says_the_same(model: Any, inputs: Any) -> None:
    assistant = type(model)(model.config).eval()
    assistant.load_state_dict(
        {name: value + 0.01 * value.std() for name, value in model.state_dict().items() if value.is_floating_point()},
        strict=False,
    )
    assert ask(model, inputs, assistant_model=assistant).tolist() == ask(model, inputs).tolist()


def test_what_transformers_models_give(model: Any, inputs: Any) -> None:
    from transformers import AutoModelForMultimodalLM

    labels = inputs["input_ids"].clone()
    whole = model(**inputs)
    assert torch.equal(model(**inputs, return_dict=False)[0], whole.logits)
    assert torch.equal(model.lm_head(whole.last_hidden_state), whole.logits)
    beside = model(**inputs, labels=labels)
    assert torch.equal(beside.logits, whole.logits)
    slots = labels.masked_fill(inputs["image_mask"], -100)
    wanted = torch.nn.functional.cross_entropy(whole.logits[0, :-1], slots[0, 1:])
    torch.testing.assert_close(beside.loss, wanted)
    model.train()
    assert model(**inputs, labels=labels).logits is None
    model.eval()
    assert AutoModelForMultimodalLM.from_config(model.config).num_parameters() == model.num_parameters()


def test_embeddings_may_be_given(model: Any, inputs: Any) -> None:
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    rest = {name: inputs[name] for name in ("attention_mask", "pixel_values", "image_mask")}
    found = model.generate(inputs_embeds=embeds, **rest, max_new_tokens=6, do_sample=False)
    assert found.tolist() == ask(model, inputs)[:, inputs["input_ids"].shape[1] :].tolist()

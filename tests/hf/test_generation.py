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


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_attention_implementations_agree(implementation: str, model: Any, inputs: Any, folder: Path) -> None:
    options = {"attn_implementation": implementation, "dtype": torch.float32}
    other = MobiLlamaVForConditionalGeneration.from_pretrained(folder, **options).eval().requires_grad_(False)
    torch.testing.assert_close(other(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert ask(other, inputs).tolist() == ask(model, inputs).tolist()


def test_attention_weights(model: Any, inputs: Any) -> None:
    layers = model.config.text_config.num_hidden_layers
    given = model(**inputs, output_attentions=True)
    length = inputs["input_ids"].shape[1]
    assert [each.shape for each in given.attentions] == [(1, 4, length, length)] * layers
    shares = given.attentions[0]
    torch.testing.assert_close(shares.sum(-1), torch.ones_like(shares[..., 0]))
    assert not shares.triu(1).any()
    torch.testing.assert_close(given.logits, model(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert model(**inputs).attentions is None


@pytest.mark.slow
def test_the_model_compiles_and_exports_as_one_graph(model: Any, inputs: Any) -> None:
    wanted = model(**inputs).logits
    whole = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(**inputs).logits, wanted)
    graph = torch.export.export(model, (), dict(inputs) | {"use_cache": False}, strict=False).module()
    torch.testing.assert_close(graph(**inputs, use_cache=False).logits, wanted)


def test_peft_adapts_the_decoder_by_default(folder: Path, inputs: Any) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra lora")
    base = MobiLlamaVForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, task_type="CAUSAL_LM"))
    added = {name: each for name, each in adapted.named_parameters() if "lora_" in name}
    for name, each in added.items():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.02)
    adapted.train()
    adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert len(added) == 22 and all(each.grad is not None and bool(each.grad.any()) for each in added.values())
    adapted.eval()
    before = adapted(**inputs).logits
    torch.testing.assert_close(adapted.merge_and_unload()(**inputs).logits, before, rtol=1e-5, atol=5e-5)

"""Exported to llava-hf, a model answers in transformers' own class as here, and comes back bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tiny
from mobillama_v import hub
from mobillama_v.cli.main import app
from mobillama_v.config import ProjectorConfig
from mobillama_v.images import ImageTransform
from mobillama_v.interop import llava_hf_export
from mobillama_v.interop.import_model import import_model
from mobillama_v.model.vision import TowerConfig, ViTShape
from mobillama_v.model.vision.plain_vit import CLIP, SIGLIP
from mobillama_v.model.vlm import load_network

SHAPE = ViTShape(24, 3, 3, 40, 8, "quick_gelu")
MODELS: dict[str, dict[str, Any]] = {
    "named": {"tower": TowerConfig(tiny.TOWER_NAME)},
    "clip": {"tower": TowerConfig(CLIP, None, -1, "cls_patch", vit=SHAPE), "decoder_changes": {"ffn_sharing": "none"}},
    "siglip": {
        "tower": TowerConfig(SIGLIP, vit=SHAPE),
        "decoder_changes": {"qkv_bias": True, "num_key_value_heads": 2, "ffn_sharing": "none"},
        "template": "v1",
    },
    "qwen3": {
        "tower": TowerConfig(CLIP, vit=SHAPE),
        "decoder_changes": {"qk_norm": True, "attention_head_dim": 16, "ffn_sharing": "none"},
    },
    "llama3": {
        "tower": TowerConfig(CLIP, vit=SHAPE),
        "decoder_changes": {
            "llama3_rope": {
                **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "original_max_position_embeddings": 32,
            }
        },
    },
}


def make(folder: Path, name: str, mode: str = "squash") -> Path:
    changes = {"image": ImageTransform(tiny.IMAGE_SIZE, mode=mode)} | MODELS[name]
    return tiny.save_nano_like(folder, **changes)


def export(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["export", "llava-hf", *map(str, arguments)], catch_exceptions=False)


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", MODELS)
def test_exported_and_imported_it_is_the_same(name: str, tower_name: str, tmp_path: Path) -> None:
    folder, theirs, back = make(tmp_path / "model", name), tmp_path / "theirs", tmp_path / "back"
    result = export(folder, theirs, "--type", "f32")  # which compares logits
    assert result.exit_code == 0, result.output
    spec = hub.read_spec(folder)
    assert ("written once a layer" in result.stdout) == (spec.decoder.ffn_sharing == "all")
    found = import_model(str(theirs), back).spec
    for each in ("ffn_sharing", "qkv_bias", "qk_norm", "head_dim"):
        assert getattr(found.decoder, each) == getattr(spec.decoder, each)
    assert (found.image, found.template) == (spec.image, spec.template)
    ours, again = (load_network(each, hub.read_spec(each)).state_dict() for each in (folder, back))
    assert set(ours) - set(again) <= {"vision_tower.visual.proj"}
    rows = spec.decoder.vocab_size
    for tensor_name, tensor in again.items():
        assert torch.equal(
            tensor[:rows] if tensor_name.endswith(("embed_tokens.weight", "lm_head.weight")) else tensor,
            ours[tensor_name],
        ), tensor_name


@pytest.mark.parametrize("mode", ["pad", "crop", "squash"])
def test_their_processor_makes_the_same_inputs(mode: str, tower_name: str, tmp_path: Path) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    import mobillama_v
    from mobillama_v.generate import Sampling
    from mobillama_v.prompt import user

    folder = make(tmp_path / "model", "named", mode)
    assert export(folder, tmp_path / "theirs").exit_code == 0
    processor = AutoProcessor.from_pretrained(tmp_path / "theirs")
    parts = [{"type": "image", "image": picture()}, {"type": "text", "text": "What is this?"}]
    chat = [{"role": "user", "content": parts}]
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    assistant = mobillama_v.load(str(folder), device="cpu", engine="torch")
    encoded = assistant.encode_messages([user("What is this?", images=1)])
    slots = inputs["input_ids"][0] == processor.image_token_id
    assert slots.tolist() == encoded.image_mask
    assert inputs["input_ids"][0][~slots].tolist() == [
        token for token, slot in zip(encoded.input_ids, encoded.image_mask, strict=True) if not slot
    ]
    pixels = torch.from_numpy(hub.read_spec(folder).image(picture()))
    if mode == "pad":  # they pad first and resize then: only the seam differs
        assert (inputs["pixel_values"][0] - pixels).abs().mean() < 0.1
    else:
        torch.testing.assert_close(inputs["pixel_values"][0], pixels, rtol=0, atol=2e-2)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
    inputs.pop("mm_token_type_ids", None)
    theirs = model.generate(**inputs | {"pixel_values": pixels[None]}, max_new_tokens=8, do_sample=False)
    answer = processor.tokenizer.decode(theirs[0, len(slots) :], skip_special_tokens=True)
    ours = assistant.ask([picture()], "What is this?", Sampling(8)).text
    assert ours == answer.strip() or ours == answer


def test_what_llava_hf_lacks_is_refused(nano_like: Path, tower_name: str, tmp_path: Path) -> None:
    merged = tiny.save_nano_like(
        tmp_path / "merged",
        tower=TowerConfig(CLIP, vit=SHAPE),
        projector=ProjectorConfig("avg_pool_mlp", 2),
        image=ImageTransform(tiny.IMAGE_SIZE, mode="squash"),
    )
    for folder, message in ((nano_like, "neither a CLIP nor a SigLIP"), (merged, "no projector avg_pool_mlp")):
        result = export(folder, tmp_path / "out")
        assert result.exit_code == 2 and message in result.stderr, result.output
    assert not (tmp_path / "out").exists()


def test_a_model_that_answers_otherwise_gets_no_name(
    tower_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = llava_hf_export.text_config

    def wrong(decoder: Any, vocabulary: int) -> dict[str, Any]:
        return right(decoder, vocabulary) | {"rms_norm_eps": 0.5}

    monkeypatch.setattr(llava_hf_export, "text_config", wrong)
    result = export(make(tmp_path / "model", "clip"), tmp_path / "out")
    assert result.exit_code == 2 and "transformers' logits of the exported model are up to" in result.stderr
    assert not (tmp_path / "out").exists()

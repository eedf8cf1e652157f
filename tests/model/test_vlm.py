"""The plain network is the transformers model without transformers, and takes memory only for files that fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mobillama_v.errors import CheckpointError, PromptError
from mobillama_v.hub import read_spec
from mobillama_v.model import vlm as module
from mobillama_v.model.decoder import causal_mask, position_ids_from_mask
from mobillama_v.model.vlm import VisionLanguageModel, load_network, place_image_features


@pytest.fixture(scope="module")
def loaded(nano_like: Path) -> VisionLanguageModel:
    return load_network(nano_like, read_spec(nano_like))


def logits(
    model: VisionLanguageModel, ids: Tensor, exists: Tensor, pixels: Tensor | None = None, slots: Tensor | None = None
) -> Tensor:
    """Logits [B,T,V] at every position, by the model's parts."""
    embeds = model.language_model.embed_tokens(ids)
    if pixels is not None and slots is not None:
        embeds = place_image_features(embeds, slots, model.get_image_features(pixels))
    positions, mask = position_ids_from_mask(exists), causal_mask(exists, ids.shape[1])
    return model.lm_head(model.language_model(embeds, position_ids=positions, mask=mask))


def test_is_the_transformers_model(nano_like: Path, loaded: VisionLanguageModel) -> None:
    from mobillama_v import MobiLlamaVForConditionalGeneration

    reference = MobiLlamaVForConditionalGeneration.from_pretrained(nano_like, dtype=torch.float32).eval()
    assert list(loaded.state_dict()) == list(reference.state_dict())
    per_image = loaded.tokens_per_image
    assert per_image == reference.tokens_per_image == 84

    torch.manual_seed(0)
    ids = torch.randint(3, 300, (2, 110))
    exists = torch.ones_like(ids)
    exists[1, :7] = 0
    slots = torch.zeros_like(ids, dtype=torch.bool)
    slots[0, 3 : 3 + per_image] = True
    slots[1, 9 : 9 + per_image] = True
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = reference(input_ids=ids, pixel_values=pixels, image_mask=slots, attention_mask=exists).logits
        got = logits(loaded, ids, exists, pixels, slots)
        text = logits(loaded, ids[:1], exists[:1])
        text_expected = reference(input_ids=ids[:1]).logits
    torch.testing.assert_close(got[exists.bool()], expected[exists.bool()])
    torch.testing.assert_close(text, text_expected)


def test_every_value_is_the_files(nano_like: Path, loaded: VisionLanguageModel) -> None:
    stored = load_file(nano_like / "model.safetensors")
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, stored[name].float(), rtol=0, atol=0, msg=name)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_imports_neither_transformers_nor_open_clip_nor_the_compiler(nano_like: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mobillama_v.hub import read_spec; "
        "from mobillama_v.model.vlm import load_network; "
        f"folder = Path({str(nano_like)!r}); load_network(folder, read_spec(folder)); "
        "print([m for m in ('transformers', 'open_clip', 'timm', 'torch._dynamo', 'sympy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/")
    assert out.stdout.strip() == "[]"


def test_a_misfit_is_refused_before_memory_is_taken(
    nano_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that asks for gigabytes is compared with the file, not allocated."""
    config = json.loads((nano_like / "config.json").read_text())
    config["text_config"] |= {"intermediate_size": 2**18, "vocab_size": 2**24}  # the largest
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(nano_like / "model.safetensors")
    made: list[str] = []
    add = VisionLanguageModel.add_language_parts

    def noting(self: VisionLanguageModel, spec: object) -> None:
        made.append(torch.empty(0).device.type)
        add(self, spec)  # type: ignore[arg-type]

    monkeypatch.setattr(VisionLanguageModel, "add_language_parts", noting)
    with pytest.raises(CheckpointError, match="mis-shaped"):
        load_network(tmp_path, read_spec(tmp_path))
    assert made == ["meta"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), r"lacks lm_head\.weight"),
        (lambda t: t.update({"extra.weight": torch.zeros(1)}), r"unknown extra\.weight"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(3, 5)}), r"lm_head\.weight is \[3, 5\] and must be \["),
    ],
)
def test_tensors_that_do_not_fit_are_named(nano_like: Path, tmp_path: Path, change, message: str) -> None:
    tensors = load_file(nano_like / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_network(tmp_path, read_spec(nano_like))


def test_buffers_outside_the_checkpoint_are_real(
    nano_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some towers compute tables that no checkpoint holds; loading must not leave them without values."""
    build = module.build_tower

    def with_table(*args, **kwargs):
        tower = build(*args, **kwargs)
        tower.register_buffer("table", torch.arange(5.0), persistent=False)
        return tower

    monkeypatch.setattr(module, "build_tower", with_table)
    loaded = load_network(nano_like, read_spec(nano_like))
    assert loaded.vision_tower.table.tolist() == [0, 1, 2, 3, 4]


def test_slots_are_as_many_as_the_images_need(loaded: VisionLanguageModel) -> None:
    embeds, slots = torch.zeros(1, 100, 32), torch.zeros(1, 100, dtype=torch.bool)
    slots[0, :84] = True
    with pytest.raises(PromptError, match="slots for 1 images and 2 images"):
        place_image_features(embeds, slots, torch.zeros(2, 84, 32))
    slots[0, 90] = True
    with pytest.raises(PromptError, match="row 0 has 85 image slots"):
        place_image_features(embeds, slots, torch.zeros(1, 84, 32))

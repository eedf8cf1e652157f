"""``from_pretrained`` of the transformers classes refuses what does not fit, where transformers itself warns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mobillama_v import MobiLlamaConfig, MobiLlamaForCausalLM, MobiLlamaVForConditionalGeneration
from mobillama_v.errors import CheckpointError
from tiny import DECODER


@pytest.fixture
def whole(tiny_model, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    MobiLlamaForCausalLM(MobiLlamaConfig(**DECODER)).save_pretrained(tmp_path)
    return tmp_path


def test_what_was_saved_loads(tiny_model, whole: Path) -> None:
    model, info = MobiLlamaVForConditionalGeneration.from_pretrained(whole, output_loading_info=True)
    assert not info["missing_keys"]
    for name, tensor in tiny_model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("lm_head.weight"), r"it lacks lm_head\.weight\.$"),
        (lambda s: s.update(spare=torch.zeros(1)), r"it has unknown spare\.$"),
        (
            lambda s: s.update({"lm_head.weight": torch.zeros(3, 32)}),
            r"lm_head\.weight is \[3, 32\] and must be \[97, 32\]",
        ),
        (
            lambda s: (s.pop("lm_head.weight"), s.update(spare=torch.zeros(1))),
            r"it lacks lm_head\.weight; it has unknown spare\.$",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["whole", "decoder"])
def test_tensors_that_do_not_fit_are_named(kind: str, change, message: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    cls = MobiLlamaVForConditionalGeneration if kind == "whole" else MobiLlamaForCausalLM
    with pytest.raises(CheckpointError, match=message):
        cls.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=message):
        cls.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_auto_classes_are_strict_too(decoder: Path) -> None:
    from transformers import AutoModelForCausalLM

    state = load_file(decoder / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, decoder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks model\.norm\.weight"):
        AutoModelForCausalLM.from_pretrained(decoder)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_damaged_weights_are_refused_and_nothing_is_unpickled(decoder: Path, tmp_path_factory) -> None:
    weights = decoder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        MobiLlamaForCausalLM.from_pretrained(decoder)
    weights.unlink()
    marker = tmp_path_factory.mktemp("marker") / "executed"
    torch.save({"lm_head.weight": Malicious(marker)}, decoder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="more than tensors"):
        MobiLlamaForCausalLM.from_pretrained(decoder, weights_only=False)
    assert not marker.exists()

"""Strict loading: what is wrong with a folder is named, and nothing from a file runs."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mobillama_v.checkpoint import load_weights
from mobillama_v.errors import CheckpointError


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    source = module()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    return source, tmp_path


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], tensor, rtol=0, atol=0)


def test_one_file(saved) -> None:
    source, folder = saved
    target = module()
    load_weights(target, folder)
    assert_equal(source, target)


def test_bin_and_shards(tmp_path: Path) -> None:
    source, target = module(), module()
    state = source.state_dict()
    shards = {
        "a.bin": {k: v for k, v in state.items() if k[0] == "0"},
        "b.bin": {k: v for k, v in state.items() if k[0] == "1"},
    }
    for name, part in shards.items():
        torch.save(part, tmp_path / name)
    index = {"weight_map": {k: name for name, part in shards.items() for k in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    load_weights(target, tmp_path)
    assert_equal(source, target)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 'b\.bin'"):
        load_weights(target, tmp_path)


def test_a_whole_model(tiny_model, tmp_path: Path) -> None:
    from mobillama_v import MobiLlamaVForConditionalGeneration

    tiny_model.save_pretrained(tmp_path)
    other = MobiLlamaVForConditionalGeneration(tiny_model.config)
    load_weights(other, tmp_path)
    assert_equal(tiny_model, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("1.bias"), r"it lacks 1\.bias\.$"),
        (lambda s: s.update(spare=torch.zeros(1)), r"it has unknown spare\.$"),
        (lambda s: s.update({"1.bias": torch.zeros(5)}), r"1\.bias is \[5\] and must be \[4\]"),
        (lambda s: s.clear(), r"lacks 0\.weight, 0\.bias, 1\.weight and 1 more"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, change, message: str) -> None:
    _, folder = saved
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_weights(module(), folder)


def test_no_weights_and_damaged_weights(saved, tmp_path_factory) -> None:
    _, folder = saved
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_weights(module(), tmp_path_factory.mktemp("empty"))
    data = (folder / "model.safetensors").read_bytes()
    for damaged in (data[:-9], data[:20], b"", b"not weights"):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            load_weights(module(), folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../model.bin"}}'])
def test_bad_indexes_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load_weights(module(), tmp_path)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_bin_is_executed(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(marker), protocol))
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_weights(module(), tmp_path)
    torch.save({"0.weight": Malicious(marker)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_weights(module(), tmp_path)
    assert not marker.exists()

"""Image tower and projector as GGUF: what llama.cpp computes of the file are the features of the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention
from typer.testing import CliRunner

import tiny
from mobillama_v.chat_templates import get_template
from mobillama_v.cli.main import app
from mobillama_v.config import ProjectorConfig
from mobillama_v.hub import read_spec
from mobillama_v.images import ImageTransform
from mobillama_v.model.vision import TowerConfig, ViTShape
from mobillama_v.model.vision.plain_vit import CLIP, SIGLIP
from mobillama_v.model.vlm import load_network
from mobillama_v.prompt_jinja import for_llama_cpp

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

SHAPE = ViTShape(24, 3, 3, 40, 8, "quick_gelu")
TOWERS = {
    "clip": TowerConfig(CLIP, vit=SHAPE),
    "clip, last block": TowerConfig(CLIP, None, -1, vit=SHAPE),
    "siglip": TowerConfig(SIGLIP, None, -1, final_norm=True, vit=dataclasses.replace(SHAPE, activation="gelu_tanh")),
    "named": TowerConfig(tiny.TOWER_NAME),
}


def export(folder: Path, out: Path, kind: str = "f32") -> Any:
    arguments = ["export", "gguf", str(folder), str(out), "--type", kind]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def features(path: Path, pixels: Tensor) -> Tensor:
    """As the graph of llama.cpp's ``clip_graph_llava``, with the class token first."""
    reader = gguf.GGUFReader(path)
    key = {name: field.contents() for name, field in reader.fields.items()}
    t = {each.name: torch.from_numpy(each.data.copy()).float() for each in reader.tensors}
    assert key["general.architecture"] == "clip" and key["clip.projector_type"] == "mlp"
    assert key["clip.has_vision_encoder"] and pixels.shape[-1] == key["clip.vision.image_size"]
    eps, heads = key["clip.vision.attention.layer_norm_epsilon"], key["clip.vision.attention.head_count"]
    assert key["clip.vision.feature_layer"] == [key["clip.vision.block_count"]]

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], eps)

    def mm(x: Tensor, name: str) -> Tensor:
        return linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    x = conv2d(pixels, t["v.patch_embd.weight"], t.get("v.patch_embd.bias"), stride=key["clip.vision.patch_size"])
    x = x.flatten(2).mT[0]
    if "v.class_embd" in t:
        x = torch.cat((t["v.class_embd"][None], x))
    x = x + t["v.position_embd.weight"]
    if "v.pre_ln.weight" in t:
        x = norm(x, "v.pre_ln")
    for i in range(key["clip.vision.block_count"]):
        block = f"v.blk.{i}"
        y = norm(x, f"{block}.ln1")
        q, k, v = (mm(y, f"{block}.attn_{part}").unflatten(1, (heads, -1)).transpose(0, 1) for part in "qkv")
        x = x + mm(scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1), f"{block}.attn_out")
        y = mm(norm(x, f"{block}.ln2"), f"{block}.ffn_up")
        y = gelu(y, approximate="tanh") if key["clip.use_gelu"] else y * torch.sigmoid(1.702 * y)
        x = x + mm(y, f"{block}.ffn_down")
    if "v.post_ln.weight" in t:
        x = norm(x, "v.post_ln")
    return mm(gelu(mm(x[len(x) % 4 :], "mm.0")), "mm.2")


@pytest.mark.parametrize("name", TOWERS)
def test_the_file_gives_the_models_features(name: str, tower_name: str, tmp_path: Path) -> None:
    folder = tiny.save_nano_like(tmp_path / "model", tower=TOWERS[name], image=ImageTransform(tiny.IMAGE_SIZE))
    result = export(folder, tmp_path / "m.gguf")
    assert result.exit_code == 0 and "Image tower and projector are in mmproj-m.gguf." in result.stdout, result.output
    assert ("class token" in result.stdout) == (name != "siglip")
    network = load_network(folder, read_spec(folder)).float()
    pixels = torch.randn(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = network.get_image_features(pixels)[0]
        torch.testing.assert_close(features(tmp_path / "mmproj-m.gguf", pixels), ours, rtol=1e-4, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "mmproj-m.gguf", "model"]
    result = export(folder, tmp_path / "other.gguf", "f16")
    assert result.exit_code == 0, result.output
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "mmproj-other.gguf").tensors}
    assert kinds["v.blk.0.ffn_up.weight"] == "F16" and kinds["mm.0.bias"] == kinds["v.patch_embd.weight"] == "F32"


def test_what_llama_cpp_lacks_is_left_out_and_said(tmp_path: Path) -> None:
    changes = {"tower": TowerConfig(CLIP, vit=SHAPE), "image": ImageTransform(tiny.IMAGE_SIZE, mode="squash")}
    for i, (change, reason) in enumerate(
        (
            ({"tower": TowerConfig(CLIP, None, -1, "cls_patch", vit=SHAPE)}, "tokens beside those of the patches"),
            ({"projector": ProjectorConfig("linear")}, "the projector linear"),
            ({}, "bicubic; this model does otherwise"),
        )
    ):
        folder = tiny.save_nano_like(tmp_path / f"model{i}", **changes | change)
        result = export(folder, tmp_path / f"m{i}.gguf")
        assert result.exit_code == 0 and reason in result.stdout, result.output
        assert (tmp_path / f"mmproj-m{i}.gguf").exists() == (not change)
    (tmp_path / "mmproj-there.gguf").touch()
    result = export(folder, tmp_path / "there.gguf")
    assert result.exit_code == 2 and "mmproj-there.gguf' is there already" in result.stderr
    assert not (tmp_path / "there.gguf").exists()


def test_marks_of_pictures_stand_where_the_template_puts_pictures() -> None:
    """llama.cpp's server joins a turn's parts to one text without line breaks, and calls a picture as it likes."""
    mark = "<__media_a1B2__>"
    made = jinja2.Environment().from_string(for_llama_cpp(get_template("v1").jinja))

    def asked(content: str) -> str:
        messages = [{"role": "user", "content": content}]
        return made.render(messages=messages, bos_token="<s>", eos_token="</s>").partition("USER: ")[2]

    expected = f"{mark}\nWhat is this? ASSISTANT:"
    for content in (f"{mark}What is this?", f"{mark}\nWhat is this?", f"What is this?{mark}"):
        assert asked(content) == expected
    assert asked(f"{mark}{mark}Compare.") == f"{mark}\n{mark}\nCompare. ASSISTANT:"
    assert asked("a <b__> c__>d") == "a <b__> c__>d ASSISTANT:"

"""Image tower and projector in 8 bits: near to the float ones, stored, read, refused and given back to torch."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from mobillama_v.backends.native import library, packed_vision
from mobillama_v.backends.native.packed_linear import PackedAttention, PackedLinear
from mobillama_v.backends.native.tiles import unpack_matrix
from mobillama_v.cli.main import app
from mobillama_v.errors import CheckpointError
from mobillama_v.generate import Sampling
from mobillama_v.hub import read_spec
from mobillama_v.loading import load
from mobillama_v.model.vlm import VisionLanguageModel

native_only = pytest.mark.skipif(bool(library.missing()), reason="no native library")
TOWER, WIDTH = "packed-test-vit-quickgelu", 384
BLOCK = "vision_tower.visual.transformer.resblocks.0"
RED = Image.new("RGB", (40, 30), (200, 30, 30))


@pytest.fixture(scope="module")
def floats(nano_like: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose tower is open_clip's, of random weights, with layers just large enough to be packed."""
    folder = tmp_path_factory.mktemp("sight")
    vision = {"image_size": 32, "patch_size": 8, "width": WIDTH, "layers": 2, "head_width": 64}
    text = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    (folder / "open_clip").mkdir()
    (folder / "open_clip" / f"{TOWER}.json").write_text(
        json.dumps({"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text})
    )
    open_clip.add_model_config(folder / "open_clip")
    config = json.loads((nano_like / "config.json").read_text())
    config |= {
        "tower": {"model": TOWER, "feature_layer": -1},
        "projector": {"type": "mlp2x_gelu"},
        "image": {"size": 32, "mode": "pad"},
    }
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    shutil.copyfile(nano_like / "tokenizer.json", model / "tokenizer.json")
    torch.manual_seed(0)
    network = VisionLanguageModel(read_spec(model))
    save_file({name: tensor.half() for name, tensor in network.state_dict().items()}, model / "model.safetensors")
    return model


@pytest.fixture(scope="module")
def packed(floats: Path) -> Path:
    out = floats.parent / "packed"
    result = CliRunner().invoke(app, ["quantize", str(floats), str(out)])
    assert result.exit_code == 0, result.stderr
    return out


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_packed_folder_holds_large_layers_in_8_bits(floats: Path, packed: Path) -> None:
    tensors, before = load_file(packed / "model.safetensors"), load_file(floats / "model.safetensors")
    layers = [f"{BLOCK}.{name}" for name in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")]
    for name in layers:
        assert tensors[f"{name}.tiles"].dtype == torch.uint8 and f"{name}.bias" in tensors
        assert f"{name}.weight" not in tensors
    assert not any("in_proj_" in name for name in tensors)
    kept = ["projector.linear_1.weight", f"{BLOCK}.ln_1.weight", f"{BLOCK}.mlp.c_fc.bias"]
    assert all(torch.equal(tensors[name], before[name]) and tensors[name].dtype == torch.float16 for name in kept)
    assert sum(each.nbytes for each in tensors.values()) < 0.6 * sum(each.nbytes for each in before.values())


@native_only
def test_features_are_near_to_those_of_floats(floats: Path, packed: Path) -> None:
    """Measured 0.8 % on these weights (0.9 and 0.7 % on ViT-L/14-336's and ViT-B/32's shapes): two bounds of it."""
    native, plain = load(str(packed), device="cpu").network, load(str(floats), device="cpu").network
    assert sum(isinstance(each, PackedLinear) for each in native.modules()) == 8
    with torch.inference_mode():
        found, expected = (each.get_image_features(images()) for each in (native, plain))
        assert 0.001 < distance(found, expected) < 0.016
        alone = native.get_image_features(images()[1:])
    assert distance(alone, found[1:]) < 1e-5  # attention and norms are torch's, whose sums depend on the batch


@native_only
def test_quantize_then_describe(packed: Path, tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    result = CliRunner().invoke(app, ["describe", "--model", str(packed), str(tmp_path / "red.png")])
    assert result.exit_code == 0, result.stderr
    assert load(str(packed), device="cpu").ask([RED], "What?", Sampling(max_new_tokens=3)).text is not None


def test_torch_gets_what_the_packed_numbers_mean(packed: Path) -> None:
    tensors = load_file(packed / "model.safetensors")
    plain = load(str(packed), device="cpu", engine="torch")
    assert not any(isinstance(each, PackedLinear | PackedAttention) for each in plain.network.modules())
    state = plain.network.state_dict()
    for name, rows in (("mlp.c_fc.weight", 4 * WIDTH), ("attn.in_proj_weight", 3 * WIDTH)):
        tiles = tensors[f"{BLOCK}.{name.replace('_weight', '.weight').removesuffix('.weight')}.tiles"]
        assert torch.equal(state[f"{BLOCK}.{name}"], unpack_matrix(tiles, 8, rows, WIDTH))
    assert torch.equal(state[f"{BLOCK}.attn.in_proj_bias"], tensors[f"{BLOCK}.attn.in_proj.bias"].float())
    assert not any(each.requires_grad or each.is_meta for each in plain.network.parameters())
    assert plain.ask([RED], "What?", Sampling(max_new_tokens=3)).text is not None
    half = load(str(packed), device="cpu", engine="torch", dtype=torch.bfloat16).network
    assert {each.dtype for each in half.parameters()} == {torch.bfloat16}
    if not library.missing():
        native = load(str(packed), device="cpu").network
        with torch.inference_mode():
            found, expected = (each.get_image_features(images()) for each in (native, plain.network))
        assert distance(found, expected) < 0.012  # what rounding the inputs alone makes


def test_the_projector_can_be_packed(floats: Path) -> None:
    plain = load(str(floats), device="cpu", engine="torch").network
    network = copy.deepcopy(plain)
    packed_vision.pack(network, least=0)
    assert isinstance(network.projector.linear_2, PackedLinear)
    packed_vision.unpack(network, torch.float32)
    again = network.state_dict()
    for name, tensor in plain.state_dict().items():
        assert distance(again[name], tensor) < 0.01 or not tensor.any()


def _another_block(block: Any) -> None:
    block.ln_1_kv = torch.nn.LayerNorm(WIDTH)


def _tokens_first(block: Any) -> None:
    block.attn.batch_first = False


def _with_dropout(block: Any) -> None:
    block.attn.dropout = 0.1


def _more_keys(block: Any) -> None:
    block.attn.add_zero_attn = True


def _own_class(block: Any) -> None:
    class Other(torch.nn.MultiheadAttention):
        pass

    block.attn.__class__ = Other


@pytest.mark.parametrize("change", [_another_block, _tokens_first, _with_dropout, _more_keys, _own_class])
def test_attention_of_another_form_stays_whole(floats: Path, change: Callable[[Any], None]) -> None:
    network = load(str(floats), device="cpu", engine="torch").network
    block = network.get_submodule(BLOCK)
    change(block)
    before = block.attn
    packed_vision.pack(network, least=0)
    assert block.attn is before and not any(isinstance(each, PackedLinear) for each in before.modules())
    assert isinstance(block.mlp.c_fc, PackedLinear)
    packed_vision.allocate(network, [f"{BLOCK}.attn.in_proj.tiles"])
    assert block.attn is before


def test_packed_attention_refuses_what_no_tower_asks() -> None:
    attention, x = PackedAttention(64, 2, like=torch.empty(0)), torch.randn(1, 3, 64)
    for key, options in ((x.clone(), {}), (x, {"need_weights": True}), (x, {"attn_mask": torch.zeros(3, 3)})):
        with pytest.raises(ValueError, match="of one input to itself"):
            attention(x, key, key, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, at: t.pop(f"{at}.bias"), r"lacks vision_tower\..*c_fc\.bias"),
        (
            lambda t, at: t.update({f"{at}.tiles": t[f"{at}.tiles"][1:].clone()}),
            r"tiles is \[95, 12, 544\]",
        ),
        (lambda t, at: t.update({f"{at}.tiles": t[f"{at}.tiles"].float()}), "tiles is float32 and must be uint8"),
        (lambda t, at: t.update({f"{at}.bias": torch.zeros(1536, dtype=torch.uint8)}), "is uint8 and must be float32"),
        (lambda t, at: t.update({f"{at}.weight": torch.zeros(1)}), r"has unknown .*c_fc\.weight"),
        (
            lambda t, at: t.update({"projector.linear_3.tiles": t.pop(f"{at}.tiles")}),
            r"unknown projector\.linear_3",
        ),
        (lambda t, at: t.pop(f"{BLOCK}.attn.in_proj.tiles"), r"lacks .*attn\.in_proj\.tiles"),
    ],
)
def test_damaged_folders_are_refused(packed: Path, tmp_path: Path, change, message: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(packed, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors, f"{BLOCK}.mlp.c_fc")
    save_file(tensors, folder / "model.safetensors")
    for engine in ("torch", "auto"):
        with pytest.raises(CheckpointError, match=message):
            load(str(folder), device="cpu", engine=engine)


def test_a_truncated_file_is_refused(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    shutil.copytree(packed, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        load(str(folder), device="cpu")


def test_weights_that_are_no_numbers_are_refused_by_name(floats: Path) -> None:
    network = load(str(floats), device="cpu", engine="torch").network
    network.get_submodule(BLOCK).mlp.c_fc.weight[3, 4] = float("nan")
    with pytest.raises(CheckpointError, match=r"resblocks\.0\.mlp\.c_fc holds weights that are not finite"):
        packed_vision.pack(network)


def test_small_layers_stay_as_they_are(nano_like: Path) -> None:
    """Those of nano's tower among them."""
    network = load(str(nano_like), device="cpu", engine="torch").network
    packed_vision.pack(network)
    assert not any(isinstance(each, PackedLinear) for each in network.modules())


def test_a_timm_tower_is_packed(floats: Path) -> None:
    """Its attention calls a layer for queries, keys and values."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    trunk = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=0).eval()
    network: Any = torch.nn.Module()
    network.vision_tower, network.projector = torch.nn.Module(), torch.nn.Identity()
    network.vision_tower.visual = torch.nn.Module()
    network.vision_tower.visual.trunk = trunk
    with torch.inference_mode():
        expected = trunk(images())
        packed_vision.pack(network, least=0)
        names = [name for name, each in network.named_modules() if isinstance(each, PackedLinear)]
        assert [name.split("blocks.0.")[1] for name in names[:4]] == ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
        if not library.missing():
            assert distance(trunk(images()), expected) < 0.016

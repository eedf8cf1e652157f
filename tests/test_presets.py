"""Presets and sizes: the arithmetic equals the real modules, built without memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from mobillama_v.config import DecoderConfig, ModelConfig, ProjectorConfig, TowerConfig, weight_bytes
from mobillama_v.errors import ConfigError, ModelNotFoundError
from mobillama_v.model.decoder import Decoder
from mobillama_v.model.kv_cache import StaticCache
from mobillama_v.model.vision import TowerShape, ViTShape, build_tower, open_clip_vit
from mobillama_v.model.vlm import VisionLanguage
from mobillama_v.presets import PRESETS, PUBLISHED, preset


def count(module: nn.Module | None) -> int:
    assert module is not None
    return sum(p.numel() for p in module.parameters())


def counted(spec: ModelConfig | DecoderConfig) -> dict[str, int]:
    return spec.params_by_part()


@pytest.mark.parametrize("name", PRESETS)
def test_the_decoder_s_parts_are_those_of_the_module(name: str) -> None:
    spec = preset(name).decoder
    with torch.device("meta"):
        decoder, head = Decoder(spec), nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
    found = counted(spec)
    assert found["embedding"] == count(decoder.embed_tokens)
    assert found["head"] == count(head)
    assert found["attention"] == sum(count(block.self_attn) for block in decoder.layers)
    if spec.ffn_sharing == "all":
        assert found["feed-forward"] == count(decoder.feed_forward)
    else:
        assert found["feed-forward"] == sum(count(block.mlp) for block in decoder.layers)
    assert sum(found.values()) == count(decoder) + count(head)


@pytest.mark.parametrize("name", [name for name, each in PRESETS.items() if isinstance(each.spec, ModelConfig)])
def test_a_whole_preset_is_its_module(name: str) -> None:
    spec = preset(name).spec
    assert isinstance(spec, ModelConfig)
    bare = dataclasses.replace(spec, tower=dataclasses.replace(spec.tower, pretrained=None))
    model = VisionLanguage()
    with torch.device("meta"):
        model.add_tower(bare)
        model.add_language_parts(bare)
    found = counted(spec)
    assert found["tower"] == count(model.vision_tower)
    assert found["projector"] == count(model.projector)
    assert sum(found.values()) == count(model)
    assert spec.tokens_per_image() == model.tokens_per_image


def test_grouped_heads() -> None:
    spec = DecoderConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, intermediate_size=96)
    with torch.device("meta"):
        decoder = Decoder(spec)
    assert counted(spec)["attention"] == sum(count(block.self_attn) for block in decoder.layers)


@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize("model", ["ViT-B-32-quickgelu", "ViT-B-16", "ViT-H-14"])
def test_plain_towers_are_counted_without_building_them(model: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TowerConfig(model)
    with torch.device("meta"):
        tower = build_tower(spec, image_size=size)
    monkeypatch.setattr(open_clip_vit._OpenClipViT, "build", lambda *_, **__: pytest.fail("it was built"))
    assert spec.shape(size) == TowerShape(tower.width, 1, tower.patches, tower.depth, count(tower))


@pytest.mark.parametrize("model", ["clip-vit", "siglip-vit", "intern-vit"])
def test_towers_of_any_shape_are_counted(model: str) -> None:
    spec = TowerConfig(model, vit=ViTShape(24, 2, 3, 50, 8))
    with torch.device("meta"):
        tower = build_tower(spec, image_size=32)
    assert spec.shape(32) == TowerShape(tower.width, tower.prefix, tower.patches, tower.depth, count(tower))


def test_other_towers_are_built_to_be_counted(tower_name: str) -> None:
    spec = TowerConfig(tower_name, pretrained="/not/here", feature_layer=-2)
    with torch.device("meta"):
        tower = build_tower(TowerConfig(tower_name), image_size=32)
    assert spec.shape(32) == TowerShape(24, 1, 16, 3, count(tower))
    with pytest.raises(ConfigError, match="no model 'ViT-nothing'"):
        TowerConfig("ViT-nothing").shape(224)


def test_the_hybrid_tower_is_counted() -> None:
    spec = preset("nano").spec
    assert isinstance(spec, ModelConfig)
    with torch.device("meta"):
        tower = build_tower(spec.tower, image_size=spec.image.size)
    shape = TowerShape(tower.width, tower.extra, tower.patches, tower.depth, count(tower))
    assert spec.tower_shape() == shape


@pytest.mark.parametrize(
    "spec",
    [
        ProjectorConfig("linear"),
        ProjectorConfig("mlp2x_gelu"),
        ProjectorConfig("pixel_shuffle_mlp", 2),
        ProjectorConfig("pixel_shuffle_mlp", 3),
        ProjectorConfig("avg_pool_mlp", 4),
        ProjectorConfig("mlp2x_gelu_newline"),
        ProjectorConfig("pixel_shuffle_norm_mlp", 2),
    ],
)
def test_projectors(spec: ProjectorConfig) -> None:
    with torch.device("meta"):
        projector = spec.build(tower_width=24, decoder_width=40)
    assert spec.kind.num_params(24, 40) == count(projector)
    model = ModelConfig(tower=TowerConfig("ViT-L-14-336-quickgelu", select="cls_patch"), projector=spec)
    assert model.tokens_per_image() == spec.kind.num_tokens(1, 576)


def test_a_factor_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="factor 5 cannot merge 576 patches"):
        ModelConfig(projector=ProjectorConfig("avg_pool_mlp", 5)).tokens_per_image()


def test_memory() -> None:
    parts = {"attention": 1000, "feed-forward": 2000, "head": 200, "norms": 60, "tower": 40}
    assert weight_bytes(parts) == {"fp32": 13200, "bf16": 6600, "4-bit": 100 * 18 + 200}


def test_the_cache_s_bytes_are_those_of_the_cache() -> None:
    spec = DecoderConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, intermediate_size=96
    )
    cache = StaticCache(spec, rows=1, capacity=1, dtype=torch.bfloat16, device="cpu")
    assert spec.kv_cache_bytes() == cache.keys.nbytes + cache.values.nbytes
    assert spec.kv_cache_bytes("fp32") == 2 * spec.kv_cache_bytes()


def test_what_is_built_is_what_the_authors_print() -> None:
    printed = {
        (name, each.what): (each.printed, each.here(preset(name).decoder))
        for name, published in PUBLISHED.items()
        for each in published.figures
    }
    assert printed["mobillama-0.5b", "parameters of the decoder"] == ("0.5B", "0.535B")
    assert printed["mobillama-0.8b", "parameters of the decoder"] == ("0.8B", "0.819B")
    assert printed["large-base", "parameters of the decoder"] == ("1.2B", "1.262B")
    for said, here in printed.values():
        if said.endswith("%"):
            assert abs(float(said[:-1]) - float(here[:-1])) < 3  # they print multiples of five
    assert set(PUBLISHED) <= set(PRESETS)


def test_unknown_preset() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no preset 'mobillama-7b'; the presets are nano, mobillama-0\.5b"):
        preset("mobillama-7b")

"""The image tower over open_clip."""

from __future__ import annotations

import sys

import pytest
import torch

from mobillama_v.config import TowerConfig
from mobillama_v.errors import ConfigError
from mobillama_v.model.vision import build_tower, open_clip_vit, tower_kind
from tiny import IMAGE_SIZE, PATCH, TOWER_WIDTH

PATCHES = (IMAGE_SIZE // PATCH) ** 2


@pytest.mark.parametrize(("select", "extra"), [("patch", 0), ("cls_patch", 1)])
def test_shapes(tower_name: str, select: str, extra: int) -> None:
    tower = build_tower(TowerConfig(tower_name, select=select), image_size=IMAGE_SIZE)
    assert (tower.extra, tower.patches, tower.width) == (extra, PATCHES, TOWER_WIDTH)
    assert tower(torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)).shape == (2, extra + PATCHES, TOWER_WIDTH)


def test_layers_differ(tower_name: str) -> None:
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    last = build_tower(TowerConfig(tower_name, feature_layer=-1), image_size=IMAGE_SIZE)
    before = build_tower(TowerConfig(tower_name, feature_layer=-2), image_size=IMAGE_SIZE)
    before.load_state_dict(last.state_dict())
    assert (last(pixels) - before(pixels)).abs().max() > 1e-3


def test_local_weights_are_loaded(tower_name: str, tmp_path) -> None:
    import open_clip

    model = open_clip.create_model(tower_name)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    tower = build_tower(
        TowerConfig(tower_name, pretrained=str(tmp_path / "weights.pt")), image_size=IMAGE_SIZE, pretrained=True
    )
    for name, tensor in model.visual.state_dict().items():
        torch.testing.assert_close(tower.visual.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TowerConfig("no-such-tower"), "no model 'no-such-tower'"),
        (TowerConfig("ViT-L-14-336", pretrained="openai"), "trained with QuickGELU.*use tower ViT-L-14-336-quickgelu"),
        (TowerConfig("ViT-B-32-quickgelu", pretrained="laion2b_s34b_b79k"), "no pretrained weights|without QuickGELU"),
        (TowerConfig("ViT-B-32", pretrained="not-a-tag"), "no pretrained weights 'not-a-tag'.*tags are"),
        (TowerConfig("RN50"), "not a vision transformer"),
    ],
)
def test_wrong_towers_are_refused(spec: TowerConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tower(spec, image_size=224)


def test_too_deep_a_layer_is_refused(tower_name: str) -> None:
    with pytest.raises(ConfigError, match="has 3 blocks; feature_layer -4"):
        build_tower(TowerConfig(tower_name, feature_layer=-4), image_size=IMAGE_SIZE)


def test_common_towers_are_known_without_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in open_clip_vit._COMMON:
        for model in (name, f"{name}-quickgelu"):
            spec = TowerConfig(model)
            expected = spec.shape(224), tower_kind(spec).plain(spec)
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, "open_clip", None)
                patch.setattr(open_clip_vit, "_shipped_config", lambda _: None)
                assert (spec.shape(224), tower_kind(spec).plain(spec)) == expected

"""Image towers: open_clip's vision transformers, those of any shape, and the embedded model's hybrid tower."""

from mobillama_v.model.vision import open_clip_vit, plain_vit  # noqa: F401 (they register themselves)
from mobillama_v.model.vision.hybrid_lite0 import HYBRID
from mobillama_v.model.vision.registry import (
    TOWERS,
    PlainViT,
    TowerConfig,
    TowerKind,
    TowerShape,
    ViTShape,
    build_tower,
    tower_kind,
)

__all__ = [
    "HYBRID",
    "TOWERS",
    "PlainViT",
    "TowerConfig",
    "TowerKind",
    "TowerShape",
    "ViTShape",
    "build_tower",
    "tower_kind",
]

"""Image towers: open_clip's vision transformers, and the embedded model's hybrid tower."""

from mobillama_v.model.vision import open_clip_vit  # noqa: F401 (registers itself)
from mobillama_v.model.vision.hybrid_lite0 import HYBRID
from mobillama_v.model.vision.registry import TOWERS, TowerConfig, TowerKind, TowerShape, build_tower, tower_kind

__all__ = ["HYBRID", "TOWERS", "TowerConfig", "TowerKind", "TowerShape", "build_tower", "tower_kind"]

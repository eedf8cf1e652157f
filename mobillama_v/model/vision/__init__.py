"""Image towers: open_clip's vision transformers, and the embedded model's hybrid tower."""

from mobillama_v.model.vision import hybrid_lite0, open_clip_vit  # noqa: F401 (they register themselves)
from mobillama_v.model.vision.registry import TOWERS, TowerKind, TowerShape, build_tower, tower_kind, tower_shape

__all__ = ["TOWERS", "TowerKind", "TowerShape", "build_tower", "tower_kind", "tower_shape"]

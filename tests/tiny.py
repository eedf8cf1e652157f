"""Tiny random models for tests: an open_clip tower small enough to compare with transformers' CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DECODER: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
TOWER_NAME = "tiny-test-vit-quickgelu"
IMAGE_SIZE, PATCH, TOWER_WIDTH, TOWER_LAYERS = 32, 8, 24, 3


def register_tower(folder: Path) -> str:
    """Teach open_clip a tiny ViT with QuickGELU; returns its name."""
    import open_clip

    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "width": TOWER_WIDTH,
            "layers": TOWER_LAYERS,
            "head_width": 8,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
    }
    path = folder / f"{TOWER_NAME}.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return TOWER_NAME


def model_config(**changes: Any) -> dict[str, Any]:
    """Keyword arguments of a tiny ``MobiLlamaVConfig``; the tower must be registered."""
    return {
        "text_config": dict(DECODER),
        "tower": {"model": TOWER_NAME, "feature_layer": -2},
        "projector": {"type": "mlp2x_gelu"},
        "image": {"size": IMAGE_SIZE},
    } | changes

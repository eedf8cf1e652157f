"""``InternVLForConditionalGeneration`` of transformers (InternVL 2.5, 3 and 3.5; arXiv 2404.16821) as a whole model.

Its pictures become one tile, which is ``crop_to_patches=False`` of its processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from mobillama_v.config import ModelConfig, ProjectorConfig
from mobillama_v.errors import CheckpointError
from mobillama_v.interop.formats import Piece
from mobillama_v.interop.llava_hf import PROJECTORS, TOWERS, LlavaHFImporter, prefix
from mobillama_v.interop.vit_names import ACTIVATIONS
from mobillama_v.model.vision import TowerConfig, ViTShape
from mobillama_v.model.vision.plain_vit import INTERN

_ENDS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
}
_BLOCK = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.projection_layer"} | {
    f"mlp.fc{i}": f"mlp.fc{i}" for i in (1, 2)
}
_SIZES = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_KNOWN: dict[str, Any] = {"attention_bias": True, "use_qk_norm": False, "norm_type": "layer_norm"} | {
    **{"layer_norm_eps": 1e-6, "use_mean_pooling": True, "use_absolute_position_embeddings": True},
}
"""What the tower must be, and what transformers assumes of it but for ``attention_bias``."""


class InternVLImporter(LlavaHFImporter):
    """InternViT-300M, pixel shuffle with a normalized MLP, and a Qwen2 or Qwen3."""

    title = "InternVL"
    model_type = "internvl"
    defaults: ClassVar[dict[str, Any]] = {"vision": "internvl_vision", "text": "qwen2", "tied": True}

    def projector(
        self, config: dict[str, Any], shapes: dict[str, Any], path: Path
    ) -> tuple[ProjectorConfig, dict[str, Piece]]:
        """The projector with its normalization."""
        pieces = super().projector(config, shapes, path)[1]
        theirs = prefix(shapes, PROJECTORS)
        pieces |= {f"projector.layer_norm.{p}": Piece((f"{theirs}layer_norm.{p}",)) for p in ("weight", "bias")}
        return ProjectorConfig("pixel_shuffle_norm_mlp", round(1 / float(config.get("downsample_ratio", 0.5)))), pieces

    def tower(
        self, config: dict[str, Any], vision: dict[str, Any], shapes: dict[str, Any], path: Path
    ) -> tuple[TowerConfig, int, dict[str, Piece]]:
        """InternViT at its last layer, without the class token."""
        asked = {"attention_bias": False, "vision_feature_layer": -1, "vision_feature_select_strategy": "default"}
        asked = _KNOWN | asked | vision | {name: config[name] for name in asked if name in config}
        wanted = _KNOWN | {"vision_feature_layer": -1, "vision_feature_select_strategy": "default"}
        side, patch = (
            _square(vision.get(name, default)) for name, default in (("image_size", 448), ("patch_size", 14))
        )
        wrong = [f"{name} {asked[name]!r}" for name, value in wanted.items() if asked[name] != value]
        activation = ACTIVATIONS.get(vision.get("hidden_act", "gelu"))
        if wrong or activation is None or not side or not patch or vision["model_type"] != "internvl_vision":
            raise CheckpointError(f"{path} asks for a tower ({', '.join(wrong) or vision}) that no model here has.")
        width, layers, heads, mlp = (vision.get(name, default) for name, default in _SIZES.items())
        spec = TowerConfig(INTERN, feature_layer=-1, vit=ViTShape(width, layers, heads, mlp, patch, activation))
        theirs = prefix(shapes, TOWERS)
        pieces = {ours: Piece((theirs + name,)) for ours, name in _ENDS.items()}
        for i in range(layers):
            layer = f"{theirs}encoder.layer.{i}."
            pieces |= {f"blocks.{i}.ls{n}.gamma": Piece((f"{layer}lambda_{n}",)) for n in (1, 2)}
            for part in ("weight", "bias"):
                qkv = tuple(f"{layer}attention.{each}_proj.{part}" for each in "qkv")
                pieces[f"blocks.{i}.attn.qkv.{part}"] = Piece(qkv)
                pieces |= {
                    f"blocks.{i}.{ours}.{part}": Piece((f"{layer}{name}.{part}",)) for ours, name in _BLOCK.items()
                }
        return spec, side, {f"vision_tower.visual.trunk.{name}": piece for name, piece in pieces.items()}

    def template(self, folder: Path) -> str:
        """The one that all of them have."""
        return "internvl"

    def notes(self, spec: ModelConfig) -> tuple[str, ...]:
        """That pictures are one tile."""
        return ("pictures are one tile, as with crop_to_patches=False in transformers",)


def _square(sides: Any) -> int:
    """The side of a square, given as one number or two; 0 where it is none."""
    both = set(sides) if isinstance(sides, (list, tuple)) else {sides}
    return int(both.pop()) if len(both) == 1 else 0

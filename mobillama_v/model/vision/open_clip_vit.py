"""Vision transformers of open_clip, its own and timm's.

The shape of a plain one is read from the configuration file that open_clip ships, without importing it; only other
models are built, without memory, to be counted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from mobillama_v.errors import ConfigError
from mobillama_v.fields import shown
from mobillama_v.model.vision.registry import (
    ANY,
    PlainViT,
    TowerConfig,
    TowerKind,
    TowerShape,
    ViTShape,
    register_tower,
)

# Options of an open_clip vision transformer that the count below covers, or that own no parameters.
_PLAIN = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "act_kwargs", "patch_dropout"}

# Common models, for where open_clip is not installed: widths of embedding and tower, layers, width of a head, patch.
_COMMON = {
    "ViT-B-32": (512, 768, 12, 64, 32),
    "ViT-B-16": (512, 768, 12, 64, 16),
    "ViT-L-14": (768, 1024, 24, 64, 14),
    "ViT-L-14-336": (768, 1024, 24, 64, 14),
    "ViT-H-14": (1024, 1280, 32, 80, 14),
}

# A text tower that is thrown away at once; open_clip has no public way to build the image tower alone.
_SMALLEST_TEXT = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}


@register_tower(ANY)
class _OpenClipViT(TowerKind):
    """Any vision transformer of ``open_clip.list_models()``."""

    def shape(self, spec: TowerConfig, image_size: int) -> TowerShape:
        config = _plain_config(spec.model)
        if config is not None:
            return _plain_shape(config, image_size)
        import torch

        whole = TowerConfig(spec.model, feature_layer=-1, select="cls_patch")
        with torch.device("meta"):
            tower = self.build(whole, image_size=image_size, pretrained=False)
        parameters = sum(each.numel() for each in tower.parameters())
        return TowerShape(tower.width, tower.prefix, tower.patches, depth=tower.depth, parameters=parameters)

    def plain(self, spec: TowerConfig) -> PlainViT | None:
        config = _plain_config(spec.model)
        if config is None or config["vision_cfg"].get("act_kwargs"):
            return None
        vision, quick = config["vision_cfg"], config.get("quick_gelu", False)
        width = vision["width"]
        shape = ViTShape(
            width=width,
            layers=vision["layers"],
            heads=width // vision.get("head_width", 64),
            mlp=int(width * vision.get("mlp_ratio", 4.0)),
            patch=vision["patch_size"],
            activation="quick_gelu" if quick else "gelu",
        )
        return PlainViT(shape)

    def build(self, spec: TowerConfig, *, image_size: int, pretrained: bool) -> Any:
        import open_clip
        import torch

        from mobillama_v.model.vision.image_tower import ImageTower

        config = open_clip.get_model_config(spec.model)
        if config is None:
            name = shown(spec.model)
            raise ConfigError(f"open_clip has no model {name}; `open_clip.list_models()` names those it has.")
        device = torch.empty(0).device  # get_default_device() of torch 2.6 sees no `with torch.device`
        options: dict[str, Any] = {"force_image_size": image_size, "device": device}
        if spec.pretrained is not None:
            _check_weights(spec, quick_gelu=bool(config.get("quick_gelu", False)))
        if pretrained and spec.pretrained is not None:
            options["pretrained"] = spec.pretrained
        else:
            options |= {"text_cfg": _SMALLEST_TEXT, "load_weights": False, "pretrained_image": False}
        return ImageTower(open_clip.create_model(spec.model, **options).visual, spec)


def _shipped_config(model: str) -> dict[str, Any] | None:
    found = importlib.util.find_spec("open_clip")
    folders = found.submodule_search_locations if found is not None else None
    if not folders or Path(model).name != model:
        return None
    path = Path(folders[0]) / "model_configs" / f"{model}.json"
    return (
        json.loads(path.read_text(encoding="utf-8")) if os.path.isfile(path) else None
    )  # pathlib's raises for a long one


def _plain_config(model: str) -> dict[str, Any] | None:
    """open_clip's configuration of a vision transformer as :func:`_plain_shape` says; None for any other."""
    taught = sys.modules.get("open_clip")  # which a program may have taught more models
    config: dict[str, Any] | None = taught.get_model_config(model) if taught else _shipped_config(model)
    if config is None:
        config = _common_config(model)
    vision = {} if config is None else config["vision_cfg"]
    return config if vision and set(vision) <= _PLAIN and isinstance(vision["layers"], int) else None


def _common_config(model: str) -> dict[str, Any] | None:
    name = model.removesuffix("-quickgelu")
    if name not in _COMMON:
        return None
    embedding, width, layers, head, patch = _COMMON[name]
    vision = {"width": width, "layers": layers, "head_width": head, "patch_size": patch}
    return {"embed_dim": embedding, "quick_gelu": name != model, "vision_cfg": vision}


def _plain_shape(config: dict[str, Any], image_size: int) -> TowerShape:
    """A vision transformer as open_clip builds it: CLS, learned positions, norms before and after, biases in blocks."""
    vision = config["vision_cfg"]
    width, patch, depth = vision["width"], vision["patch_size"], vision["layers"]
    patches = (image_size // patch) ** 2
    hidden = int(width * vision.get("mlp_ratio", 4.0))
    attention = 4 * width * (width + 1)
    mlp = hidden * (2 * width + 1) + width
    block = attention + mlp + 4 * width
    embeddings = 3 * width * patch**2 + (patches + 2) * width
    head = 4 * width + width * config["embed_dim"]  # norms before and after the blocks, and the projection
    return TowerShape(width, 1, patches, depth=depth, parameters=depth * block + embeddings + head)


def _check_weights(spec: TowerConfig, *, quick_gelu: bool) -> None:
    """Refuse unknown weights, and weights trained with another activation: open_clip only warns of the latter."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    assert spec.pretrained is not None
    if Path(spec.pretrained).is_file():
        return
    tag = get_pretrained_cfg(spec.model, spec.pretrained)
    if not tag:
        known = ", ".join(list_pretrained_tags_by_model(spec.model)) or "none"
        raise ConfigError(
            f"tower {spec.model} has no pretrained weights {spec.pretrained!r}, and there is no such file; "
            f"its tags are: {known}."
        )
    if bool(tag.get("quick_gelu", False)) != quick_gelu:
        wanted = spec.model.removesuffix("-quickgelu") if quick_gelu else f"{spec.model}-quickgelu"
        raise ConfigError(
            f"the weights {spec.pretrained!r} were trained {'without' if quick_gelu else 'with'} QuickGELU and "
            f"tower {spec.model} is built {'with' if quick_gelu else 'without'} it; use tower {wanted}."
        )

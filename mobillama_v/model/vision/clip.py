"""The image tower: any open_clip vision transformer, read at a chosen layer.

LLaVA-1.5 (arXiv 2310.03744) reads ViT-L/14-336 at the layer before the last, without the final norm, and drops the CLS
token. The tower here is open_clip's own module, so its state dict keeps open_clip's names under ``visual.``.

Shapes: N images, S image side in pixels, E extra (CLS) tokens kept, P patches, Dv tower width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobillama_v.config import HYBRID, TowerConfig
from mobillama_v.errors import ConfigError
from mobillama_v.model.vision.hybrid_lite0 import IMAGE_SIZE, HybridTrunk, HybridVisual

_HYBRID_TRUNK = "vit_hybrid_lite0_s32_224"  # its timm name, which open_clip's configuration of HYBRID gives
_CONFIGS = Path(__file__).parent / "open_clip_configs"

# A text tower that is thrown away at once; open_clip has no public way to build the image tower alone.
_SMALLEST_TEXT = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}


class ImageTower(nn.Module):
    """Pixels [N,3,S,S] to features [N,E+P,Dv] of one layer."""

    def __init__(self, visual: nn.Module, spec: TowerConfig) -> None:
        super().__init__()
        self.visual: Any = visual
        self.spec = spec
        trunk: Any = getattr(visual, "trunk", None)
        if trunk is not None and hasattr(trunk, "num_prefix_tokens"):  # a timm vision transformer
            self.width, prefix = int(trunk.embed_dim), int(trunk.num_prefix_tokens)
            grid, depth = trunk.patch_embed.grid_size, len(trunk.blocks)
        elif hasattr(visual, "transformer") and hasattr(visual, "conv1"):  # open_clip's own
            self.width, prefix = int(visual.conv1.out_channels), 1  # type: ignore[union-attr,arg-type]
            grid, depth = visual.grid_size, len(visual.transformer.resblocks)  # type: ignore[union-attr,arg-type]
        else:
            raise ConfigError(f"tower {spec.model} is not a vision transformer; choose a ViT model of open_clip.")
        if -spec.feature_layer > depth:
            raise ConfigError(
                f"tower {spec.model} has {depth} blocks; feature_layer {spec.feature_layer} is none of them."
            )
        self.patches = math.prod(grid)
        self.extra = prefix if spec.select == "cls_patch" else 0

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of the layer that the spec names."""
        out = self.visual.forward_intermediates(
            pixel_values,
            indices=[self.spec.feature_layer],
            stop_early=True,
            normalize_intermediates=False,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=self.extra > 0,
        )
        patches = out["image_intermediates"][0]
        if not self.extra:
            return patches
        return torch.cat((out["image_intermediates_prefix"][0], patches), dim=1)


def build_tower(spec: TowerConfig, *, image_size: int, pretrained: bool = False) -> ImageTower:
    """Make the tower that ``spec`` names: at random, or with ``pretrained`` holding the weights that it names.

    A model that is about to be filled from a checkpoint wants the former. It is made on torch's default device, which
    is how transformers makes models without memory.

    Raises:
        ConfigError: no such model or tag; a model whose activation (QuickGELU or not) is not the one that its
            weights were trained with; weights that are neither a known tag nor a file.
    """
    if spec.model == HYBRID:  # the same tensors as through open_clip, without seconds of imports
        if image_size != IMAGE_SIZE:
            raise ConfigError(f"tower {HYBRID} reads images of {IMAGE_SIZE} pixels a side, not {image_size}.")
        if spec.pretrained is not None:
            raise ConfigError(f"tower {HYBRID} has no pretrained weights of its own; they come with the checkpoint.")
        return ImageTower(HybridVisual(), spec)

    import open_clip

    register_towers()
    config = open_clip.get_model_config(spec.model)
    if config is None:
        raise ConfigError(f"open_clip has no model {spec.model!r}; `open_clip.list_models()` names those it has.")
    device = torch.empty(0).device  # get_default_device() of torch 2.6 sees no `with torch.device`
    options: dict[str, Any] = {"force_image_size": image_size, "device": device}
    if spec.pretrained is not None:
        _check_weights(spec, quick_gelu=bool(config.get("quick_gelu", False)))
    if pretrained and spec.pretrained is not None:
        options["pretrained"] = spec.pretrained
    else:
        options |= {"text_cfg": _SMALLEST_TEXT, "load_weights": False, "pretrained_image": False}
    return ImageTower(open_clip.create_model(spec.model, **options).visual, spec)


def register_towers() -> None:
    """Make timm and open_clip know the hybrid tower, so that ``open_clip.create_model(HYBRID)`` builds it."""
    import open_clip
    from timm.models import is_model, register_model

    if not is_model(_HYBRID_TRUNK):
        register_model(vit_hybrid_lite0_s32_224)
    open_clip.add_model_config(_CONFIGS)


def vit_hybrid_lite0_s32_224(pretrained: bool = False, **options: Any) -> HybridTrunk:
    """timm's entry point of the hybrid trunk; timm's options for other heads have no effect on it.

    Raises:
        ConfigError: pretrained weights were asked for.
    """
    if pretrained:
        raise ConfigError(f"{_HYBRID_TRUNK} has no pretrained weights of its own; they come with the checkpoint.")
    return HybridTrunk()


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

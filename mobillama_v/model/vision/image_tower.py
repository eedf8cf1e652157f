"""The image tower in torch: any module with open_clip's interface, read at a chosen layer.

LLaVA-1.5 (arXiv 2310.03744) reads ViT-L/14-336 at the layer before the last, without the final norm, and drops the CLS
token. The module's state dict keeps open_clip's names under ``visual.``.

Shapes: N images, S image side in pixels, E extra (CLS) tokens kept, P patches, Dv tower width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mobillama_v.errors import ConfigError
from mobillama_v.model.vision.registry import TowerConfig, check_layer, read_features


class ImageTower(nn.Module):
    """Pixels [N,3,S,S] to features [N,E+P,Dv] of one layer."""

    def __init__(self, visual: Any, spec: TowerConfig) -> None:
        super().__init__()
        self.visual = visual
        self.spec = spec
        trunk: Any = getattr(visual, "trunk", None)
        if trunk is not None and hasattr(trunk, "num_prefix_tokens"):  # a timm vision transformer
            self.width, self.prefix = int(trunk.embed_dim), int(trunk.num_prefix_tokens)
            grid, self.depth = trunk.patch_embed.grid_size, len(trunk.blocks)
        elif hasattr(visual, "transformer") and hasattr(visual, "conv1"):  # open_clip's own
            self.width, self.prefix = int(visual.conv1.out_channels), 1
            grid, self.depth = visual.grid_size, len(visual.transformer.resblocks)
        else:
            raise ConfigError(f"tower {spec.model} is not a vision transformer; choose a ViT model of open_clip.")
        check_layer(spec, self.depth)
        self.patches = math.prod(grid)
        self.extra = self.prefix if spec.select == "cls_patch" else 0

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are held in, and pixels are converted to."""
        return next(self.parameters()).dtype

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of the layer that the spec names."""
        features: Tensor = read_features(self.visual, pixel_values.to(self.dtype), self.spec, torch.cat)
        return features


class FullPrecisionTower(ImageTower):
    """A tower that stays in fp32 in a model of any type, and computes in fp32 also under autocast.

    It is for a tower that compares and sorts what it detects: in bf16, neighbors of a heat map's peak are often as hot
    as the peak, and positions that are sorted by are rounded to whole cells.
    """

    _keep_in_fp32_modules_strict = ("vision_tower",)  # transformers reads it when it loads weights

    def __init__(self, visual: Any, spec: TowerConfig) -> None:
        super().__init__(visual.float(), spec)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """What torch's ``to()``, ``half()`` and the like are made of; devices change, types do not."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of the layer that the spec names."""
        with torch.autocast(pixel_values.device.type, enabled=False):
            return super().forward(pixel_values)

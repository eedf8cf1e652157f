"""The projectors between image tower and decoder.

``mlp2x_gelu`` is LLaVA-1.5's (arXiv 2310.03744, section 3.3), ``linear`` LLaVA-1's. The two reducing ones merge a
square of patches into one visual token before the MLP: pixel shuffle (space to depth, as in Idefics3 and nanoVLM) keeps
all values, average pooling keeps their mean. Where the tower passes a CLS part on, it is not merged.

Shapes: N images, E extra (CLS) tokens, G the side of the patch grid, Dv tower width, D decoder width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama_v.config import ProjectorConfig
from mobillama_v.errors import ConfigError


def projected_tokens(spec: ProjectorConfig, *, extra: int, patches: int) -> int:
    """Number of visual tokens that a projector makes of ``extra`` CLS tokens and ``patches`` patches.

    Raises:
        ConfigError: the patch grid is not square or not a multiple of the projector's factor.
    """
    if spec.factor == 1:
        return extra + patches
    side = math.isqrt(patches)
    if side * side != patches or side % spec.factor:
        raise ConfigError(
            f"projector {spec.type} with factor {spec.factor} cannot merge {patches} patches; it needs a square grid "
            f"whose side is a multiple of {spec.factor}."
        )
    return extra + patches // spec.factor**2


class Projector(nn.Module):
    """Maps [N,E+G*G,Dv] to [N,E+G*G/factor²,D]."""

    def __init__(self, spec: ProjectorConfig, *, tower_width: int, decoder_width: int) -> None:
        super().__init__()
        self.spec = spec
        self.tower_width = tower_width
        merged = tower_width * spec.factor**2 if spec.type == "pixel_shuffle_mlp" else tower_width
        self.linear_1 = nn.Linear(merged, decoder_width)
        self.linear_2 = nn.Linear(decoder_width, decoder_width) if spec.type != "linear" else None

    def forward(self, features: Tensor, *, extra: int = 0) -> Tensor:
        """Project; ``extra`` leading tokens are not part of the patch grid and are repeated to the merged width."""
        if self.spec.factor > 1:
            features = torch.cat((self._widen(features[:, :extra]), self._merge(features[:, extra:])), dim=1)
        hidden = self.linear_1(features)
        return hidden if self.linear_2 is None else self.linear_2(F.gelu(hidden))

    def _widen(self, extra: Tensor) -> Tensor:
        return extra.repeat(1, 1, self.linear_1.in_features // self.tower_width)

    def _merge(self, patches: Tensor) -> Tensor:
        images, count, width = patches.shape
        factor, side = self.spec.factor, math.isqrt(count)
        projected_tokens(self.spec, extra=0, patches=count)  # raises on a grid that does not divide
        squares = patches.view(images, side // factor, factor, side // factor, factor, width).transpose(2, 3)
        squares = squares.reshape(images, -1, factor * factor, width)  # [N,(G/f)²,f²,Dv]
        return squares.flatten(2) if self.spec.type == "pixel_shuffle_mlp" else squares.mean(2)


def build_projector(spec: ProjectorConfig, *, tower_width: int, decoder_width: int) -> Projector:
    """The projector that ``spec`` names, freshly initialized."""
    return Projector(spec, tower_width=tower_width, decoder_width=decoder_width)

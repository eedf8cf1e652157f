"""The projectors that come with the project.

``mlp2x_gelu`` is LLaVA-1.5's (arXiv 2310.03744, section 3.3), ``linear`` LLaVA-1's. The others merge a square of
patches into one visual token before the MLP: pixel shuffle (space to depth) keeps all values, average pooling keeps
their mean. ``pixel_shuffle_linear`` is that of Idefics3 and SmolVLM (arXiv 2408.12637): one layer without a bias in
place of the MLP, ``pixel_shuffle_norm_mlp`` InternVL's (arXiv 2404.16821), which normalizes before it.
``mlp2x_gelu_newline`` is LLaVA-OneVision's (arXiv 2408.03326), whose pictures end with a learned token. Extra (CLS)
tokens before the patches are not merged.

Shapes are those of :mod:`mobillama_v.projector.registry`; G is the side of the patch grid, f the factor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mobillama_v.errors import ConfigError
from mobillama_v.projector.registry import Operations, Projector, register_projector

if TYPE_CHECKING:
    from torch import nn


@register_projector("linear", portable=True)
class LinearProjector(Projector):
    """One linear layer."""

    def linear_layers(self, tower_width: int, decoder_width: int) -> dict[str, tuple[int, int]]:
        """Tower width to decoder width."""
        return {"linear_1": (tower_width, decoder_width)}

    def forward(self, layers: Any, features: Any, *, extra: int, ops: Operations) -> Any:
        """Map [N,E+P,Dv] to [N,E+P,D]."""
        return layers.linear_1(features)


@register_projector("mlp2x_gelu", portable=True)
class MLP(Projector):
    """Two linear layers with GELU between them."""

    def linear_layers(self, tower_width: int, decoder_width: int) -> dict[str, tuple[int, int]]:
        """Tower width to decoder width, and on."""
        return {"linear_1": (tower_width, decoder_width), "linear_2": (decoder_width, decoder_width)}

    def forward(self, layers: Any, features: Any, *, extra: int, ops: Operations) -> Any:
        """Map [N,E+P,Dv] to [N,E+P,D]."""
        return layers.linear_2(ops.gelu(layers.linear_1(features)))


@register_projector("mlp2x_gelu_newline")
class NewlineMLP(MLP):
    """The MLP, and one learned token behind the picture."""

    def num_tokens(self, extra: int, patches: int) -> int:
        """One for each, and the last."""
        return extra + patches + 1

    def num_params(self, tower_width: int, decoder_width: int) -> int:
        """The MLP's and the token's."""
        return super().num_params(tower_width, decoder_width) + decoder_width

    def layers(self, tower_width: int, decoder_width: int) -> dict[str, nn.Module]:
        """The MLP's, and a table of one token."""
        from torch import nn

        return super().layers(tower_width, decoder_width) | {"newline": nn.Embedding(1, decoder_width)}

    def forward(self, layers: Any, features: Any, *, extra: int, ops: Operations) -> Any:
        """Map [N,E+P,Dv] to [N,E+P+1,D]."""
        projected = super().forward(layers, features, extra=extra, ops=ops)
        return ops.concatenate((projected, layers.newline.weight.expand(len(projected), 1, -1)), 1)


@register_projector("avg_pool_mlp", portable=True)
class AvgPoolMLP(MLP):
    """The MLP over the mean of each square of patches."""

    merges = True

    def num_tokens(self, extra: int, patches: int) -> int:
        """One for each extra token and each square."""
        side = math.isqrt(patches)
        if side * side != patches or side % self.factor:
            raise ConfigError(
                f"projector {self.type} with factor {self.factor} cannot merge {patches} patches; it needs a square "
                f"grid whose side is a multiple of {self.factor}."
            )
        return extra + patches // self.factor**2

    def forward(self, layers: Any, features: Any, *, extra: int, ops: Operations) -> Any:
        """Map [N,E+G*G,Dv] to [N,E+(G/f)²,D]."""
        return super().forward(layers, self.merged(features, extra, ops), extra=extra, ops=ops)

    def merged(self, features: Any, extra: int, ops: Operations) -> Any:
        """Features [N,E+G*G,Dv] with each square of patches merged, [N,E+(G/f)²,...]; extra tokens are repeated."""
        merged = self.merge(features[:, extra:])
        copies = merged.shape[-1] // features.shape[-1]
        return ops.concatenate((ops.concatenate([features[:, :extra]] * copies, -1), merged), 1)

    def merge(self, patches: Any) -> Any:
        """Map patches [N,G*G,Dv] to one vector for each square, [N,(G/f)²,Dv].

        Raises:
            ConfigError: their grid does not divide.
        """
        return self.squares(patches).mean(2)

    def squares(self, patches: Any) -> Any:
        """Arrange patches [N,G*G,Dv] by squares, [N,(G/f)²,f²,Dv]."""
        images, count, width = patches.shape
        self.num_tokens(0, count)  # raises on a grid that does not divide
        factor, across = self.factor, math.isqrt(count) // self.factor
        squares = patches.reshape(images, across, factor, across, factor, width).swapaxes(2, 3)
        return squares.reshape(images, across * across, factor * factor, width)


@register_projector("pixel_shuffle_mlp", portable=True)
class PixelShuffleMLP(AvgPoolMLP):
    """The MLP over all values of each square of patches; an extra token is repeated to that width."""

    def linear_layers(self, tower_width: int, decoder_width: int) -> dict[str, tuple[int, int]]:
        """The MLP's, over f² patches."""
        return super().linear_layers(tower_width * self.factor**2, decoder_width)

    def merge(self, patches: Any) -> Any:
        """Map patches [N,G*G,Dv] to one vector for each square, [N,(G/f)²,f²*Dv]."""
        squares = self.squares(patches)
        return squares.reshape(*squares.shape[:2], -1)


@register_projector("pixel_shuffle_norm_mlp")
class PixelShuffleNormMLP(PixelShuffleMLP):
    """The MLP over the layer-normalized values of each square of patches."""

    def num_params(self, tower_width: int, decoder_width: int) -> int:
        """The MLP's, and scale and shift of f² patches."""
        return super().num_params(tower_width, decoder_width) + 2 * tower_width * self.factor**2

    def layers(self, tower_width: int, decoder_width: int) -> dict[str, nn.Module]:
        """The MLP's, and the normalization."""
        from torch import nn

        norm = nn.LayerNorm(tower_width * self.factor**2)
        return {"layer_norm": norm} | super().layers(tower_width, decoder_width)

    def forward(self, layers: Any, features: Any, *, extra: int, ops: Operations) -> Any:
        """Map [N,E+G*G,Dv] to [N,E+(G/f)²,D]."""
        normalized = layers.layer_norm(self.merged(features, extra, ops))
        return layers.linear_2(ops.gelu(layers.linear_1(normalized)))


@register_projector("pixel_shuffle_linear", portable=True)
class PixelShuffleLinear(PixelShuffleMLP):
    """One linear layer over all values of each square of patches."""

    bias = False

    def linear_layers(self, tower_width: int, decoder_width: int) -> dict[str, tuple[int, int]]:
        """All values of f² patches to decoder width."""
        return {"linear_1": (tower_width * self.factor**2, decoder_width)}

    def forward(self, layers: Any, features: Any, *, extra: int, ops: Operations) -> Any:
        """Map [N,E+G*G,Dv] to [N,E+(G/f)²,D]."""
        return layers.linear_1(self.merged(features, extra, ops))

"""The hybrid tower and a plain projector for one image, over numpy: :mod:`mobillama_v.model.vision.hybrid_lite0`
explains the tower.

Shapes as there, without the axis of images and with channels last. Tensors have the names of a model folder.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from mobillama_v.backends.numpy.layers import (
    Array,
    Conv,
    DepthwiseConv,
    LayerNorm,
    Linear,
    Tensors,
    gelu,
    relu6,
    softmax,
)
from mobillama_v.backends.numpy.structured_tokens import LabelTokens, StructuredTokens
from mobillama_v.config import HYBRID, ModelConfig
from mobillama_v.model.vision.hybrid_lite0_sizes import (
    CLASSES,
    DEPTH,
    GATHERED,
    GRID,
    HEAD_WIDTH,
    HEADS,
    READ,
    STAGES,
    STEM_WIDTH,
    TOLD,
    WIDTH,
)

_OPERATIONS: Any = SimpleNamespace(gelu=gelu, concatenate=np.concatenate)  # what a portable projector asks for


class InvertedResidual:
    """Expand, depthwise, project."""

    def __init__(self, tensors: Tensors, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        wide = inputs * expansion
        self._expand = Conv(tensors.under("expand"), inputs, wide, 1) if expansion > 1 else None
        self._depthwise = DepthwiseConv(tensors.under("depthwise"), wide, kernel, stride)
        self._project = Conv(tensors.under("project"), wide, outputs, 1)
        self._residual = stride == 1 and inputs == outputs

    def __call__(self, x: Array) -> Array:
        """Map [H,W,C] to [H/stride,W/stride,C']."""
        y = x if self._expand is None else relu6(self._expand(x))
        y = self._project(relu6(self._depthwise(y)))
        return x + y if self._residual else y


class Lite0:
    """The stem with its classifier."""

    def __init__(self, tensors: Tensors) -> None:
        self._conv_stem = Conv(tensors.under("conv_stem"), 3, STEM_WIDTH, 3, 2)
        self._stages: list[list[InvertedResidual]] = []
        inputs = STEM_WIDTH
        for i, (repeats, kernel, stride, expansion, outputs) in enumerate(STAGES):
            blocks = []
            for repeat in range(repeats):
                here = tensors.under(f"stages.{i}.{repeat}")
                blocks.append(InvertedResidual(here, inputs, outputs, kernel, 1 if repeat else stride, expansion))
                inputs = outputs
            self._stages.append(blocks)
        self._conv_head = Conv(tensors.under("conv_head"), inputs, HEAD_WIDTH, 1)
        self._classifier = Linear(tensors.under("classifier"), HEAD_WIDTH, CLASSES)

    def __call__(self, x: Array) -> tuple[list[Array], Array]:
        """[S,S,3] to maps of strides 8, 16 and 32, and class logits [1000]."""
        x, maps = relu6(self._conv_stem(x)), []
        for i, stage in enumerate(self._stages):
            for block in stage:
                x = block(x)
            if i in READ:
                maps.append(x)
        return maps, self._classifier(relu6(self._conv_head(x)).mean((0, 1)))


def gather_cells(maps: list[Array]) -> Array:
    """Everything that the stem's maps say about each cell of the grid, [P,GATHERED]."""
    cells = []
    for x in maps:
        step = x.shape[0] // GRID
        x = x.reshape(GRID, step, GRID, step, -1).transpose(0, 2, 1, 3, 4)
        cells.append(x.reshape(GRID * GRID, -1))
    return np.concatenate(cells, axis=-1)


class ViTBlock:
    """A pre-norm transformer block."""

    def __init__(self, tensors: Tensors) -> None:
        self._norm1, self._norm2 = (LayerNorm(tensors.under(name), WIDTH) for name in ("norm1", "norm2"))
        self._qkv, self._proj = (
            Linear(tensors.under("qkv"), WIDTH, 3 * WIDTH),
            Linear(tensors.under("proj"), WIDTH, WIDTH),
        )
        self._fc1, self._fc2 = (
            Linear(tensors.under("fc1"), WIDTH, 4 * WIDTH),
            Linear(tensors.under("fc2"), 4 * WIDTH, WIDTH),
        )

    def __call__(self, x: Array) -> Array:
        """Map [P,D] to [P,D]."""
        q, k, v = self._qkv(self._norm1(x)).reshape(len(x), 3, HEADS, -1).transpose(1, 2, 0, 3)
        scores = q @ k.transpose(0, 2, 1) * np.float32((WIDTH // HEADS) ** -0.5)
        x = x + self._proj((softmax(scores) @ v).transpose(1, 0, 2).reshape(x.shape))
        return x + self._fc2(gelu(self._fc1(self._norm2(x))))


class HybridTrunk:
    """The whole tower."""

    def __init__(self, tensors: Tensors) -> None:
        embed = tensors.under("patch_embed")
        self._stem = Lite0(embed.under("stem"))
        self._norm = LayerNorm(embed.under("norm"), GATHERED)
        self._fc1 = Linear(embed.under("fc1"), GATHERED, 2 * WIDTH)
        self._fc2 = Linear(embed.under("fc2"), 2 * WIDTH, WIDTH)
        self._pos_embed = tensors.floats("pos_embed", 1, GRID * GRID, WIDTH)[0]
        self._blocks = [ViTBlock(tensors.under(f"blocks.{i}")) for i in range(DEPTH)]
        self._cell_words, self._account = (
            LabelTokens(tensors.under("cell_words")),
            StructuredTokens(tensors.under("account")),
        )

    def __call__(self, x: Array) -> Array:
        """[S,S,3] to the account and the patches [TOLD+P,D]."""
        maps, logits = self._stem(x)
        cells = gather_cells(maps)
        x = self._fc2(gelu(self._fc1(self._norm(cells)))) + self._pos_embed
        for block in self._blocks:
            x = block(x)
        patches, features, told = self._cell_words(x)
        return np.concatenate((self._account(softmax(logits), cells, features, told), patches))


class HybridVisionEncoder:
    """Pixels to visual tokens, for models of which :func:`fits` is true."""

    def __init__(self, tensors: Tensors, spec: ModelConfig) -> None:
        """Take the tensors of tower and projector.

        Raises:
            MisfitError: one that is not there, or has another shape than ``spec`` says.
        """
        width = spec.decoder.hidden_size
        self._trunk = HybridTrunk(tensors.under("vision_tower.visual.trunk"))
        self._told = spec.tower.select == "cls_patch"
        self._projector = spec.projector.kind
        projector = tensors.under("projector")
        shapes = self._projector.linear_layers(WIDTH, width)
        self._layers = SimpleNamespace(**{name: Linear(projector.under(name), *shapes[name]) for name in shapes})
        self.tokens_per_image = self._projector.num_tokens(TOLD * self._told, GRID * GRID)

    def encode_image(self, pixel_values: Array) -> Array:
        """Visual tokens [P',D] of an image's pixels [3,S,S], fp32."""
        features = self._trunk(pixel_values.transpose(1, 2, 0))
        chosen = features[None] if self._told else features[None, TOLD:]
        projected = self._projector.forward(self._layers, chosen, extra=TOLD * self._told, ops=_OPERATIONS)
        tokens: Array = projected[0]
        return tokens


def fits(spec: ModelConfig) -> bool:
    """Whether a model's tower and projector are those that are computed here."""
    return spec.tower.model == HYBRID and spec.tower.feature_layer == -1 and spec.projector.kind.portable

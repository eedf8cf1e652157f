"""Read a model folder without torch, where it holds a model that can be answered for without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from mobillama_v.backends.native.pack import HEAD, pack_decoder, pack_fp16
from mobillama_v.backends.native.packed_format import Packed, is_packed, mapped, read
from mobillama_v.backends.numpy.layers import NUMPY, Array, Linear, MisfitError, Tensors, to_numpy
from mobillama_v.checkpoint import weight_files
from mobillama_v.config import ModelConfig
from mobillama_v.model.vision import parts, tower_kind
from mobillama_v.model.vision.registry import read_features
from mobillama_v.projector import Operations

if TYPE_CHECKING:
    from mobillama_v.model.vlm import VisionLanguageModel


class NumpyVisionEncoder:
    """Image tower and projector over numpy, for models that :func:`supports` finds no fault with."""

    device = "cpu"
    ops: Operations = NUMPY

    def __init__(self, tensors: Tensors, spec: ModelConfig, make_network: Callable[[], VisionLanguageModel]) -> None:
        """Take the tensors of tower and projector.

        Raises:
            MisfitError: one that is not there, or has another shape than ``spec`` says.
            CheckpointError: numbers that are not finite.
        """
        self.spec, self._make_network = spec, make_network
        self._tower = self.make_tower(tensors.under("vision_tower.visual"))
        shape = spec.tower_shape()
        self._projector, under = spec.projector.kind, tensors.under("projector")
        layers = self._projector.linear_layers(shape.width, spec.decoder.hidden_size)
        bias = self._projector.bias
        made = {name: parts.Linear(*sides, bias=bias) for name, sides in layers.items()}
        self._layers = SimpleNamespace(**{name: self.make_linear(under.under(name), made[name]) for name in made})
        self._extra = shape.extra(spec.tower)
        self.tokens_per_image = self._projector.num_tokens(self._extra, shape.patches)

    def make_tower(self, tensors: Tensors) -> Callable[[Array], Array]:
        """A function of pixels [N,3,S,S] to the tower's features."""
        declared = tower_kind(self.spec.tower).declared()
        assert declared is not None
        visual = to_numpy(declared, tensors)
        return lambda pixels: read_features(visual, pixels, self.spec.tower, np.concatenate)

    def make_linear(self, tensors: Tensors, declared: parts.Linear) -> Any:
        """A layer of the projector."""
        return Linear(tensors, declared)

    def encode_image(self, pixel_values: Array) -> Array:
        """Visual tokens [P',D] of an image's pixels [3,S,S], fp32."""
        features = self._tower(pixel_values[None])
        projected = self._projector.forward(self._layers, features, extra=self._extra, ops=self.ops)
        tokens: Array = projected[0]
        return tokens

    @cached_property
    def network(self) -> VisionLanguageModel:
        """The model in torch, which is loaded now."""
        return self._make_network()


def supports(config: ModelConfig) -> str:
    """Why a model's tower or projector cannot be computed here; empty where they can."""
    if tower_kind(config.tower).declared() is None:
        return f"numpy does not compute the image tower {config.tower.model}"
    if -config.tower.feature_layer > config.tower_shape().depth:
        return f"the image tower has no layer {config.tower.feature_layer}"
    return "" if config.projector.kind.portable else f"numpy does not compute the projector {config.projector.type}"


def load(
    folder: Path, spec: ModelConfig, make_encoder: Callable[[Tensors], NumpyVisionEncoder]
) -> tuple[NumpyVisionEncoder, Packed]:
    """The vision encoder that ``make_encoder`` makes of the tensors of a model, and its decoder.

    Float weights of the decoder are packed to 16 bits.

    Raises:
        MisfitError: the files do not hold what they should in a way that is known here: who loads them into torch knows
            more ways, and says what is wrong.
        CheckpointError: there are no weights, a packed file is damaged, or weights are not finite.
    """
    tensors = Tensors(_read(weight_files(folder)))
    vision = make_encoder(tensors)
    if is_packed(folder):
        packed = read(folder, spec.decoder)
    else:

        def get(name: str, *shape: int) -> Array:
            return tensors.take(name if name == HEAD else f"language_model.{name}", *shape)

        packed = pack_decoder(get, spec.decoder, 16, pack_fp16)
    if tensors.left:
        raise MisfitError(f"an unknown {min(tensors.left)}")
    return vision, packed


def _read(paths: list[Path]) -> dict[str, Array]:
    """Everything in weight files; not if one is of another format, damaged, or holds types that numpy lacks."""
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Array] = {}
    for path in paths:
        try:
            with safe_open(path, framework="np"):  # which checks that the tensors lie in it, one after another
                tensors |= mapped(path)[1]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise MisfitError(f"{path.name} damaged or of a type that it cannot read") from error
    return tensors

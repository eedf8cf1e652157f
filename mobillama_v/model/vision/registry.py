"""Kinds of image towers. A kind is one class in one file, registered under the open_clip name of its model.

Every tower has open_clip's interface for features of inner layers, ``forward_intermediates``.

Shapes: N images, S image side in pixels, E extra (CLS or structured) tokens kept, P patches, Dv tower width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from mobillama_v.errors import ConfigError
from mobillama_v.fields import check, check_types, shown
from mobillama_v.model.vision.parts import Part

ANY = "any"
"""Where the kind stands that builds the models which no other kind names."""


@dataclass(frozen=True)
class ViTShape:
    """The shape of a plain vision transformer: blocks, their width and heads, hidden units, and a patch's side."""

    width: int
    layers: int
    heads: int
    mlp: int
    patch: int
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "gelu"

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("width", "layers", "heads", "mlp", "patch"):
            value = getattr(self, name)
            check(0 < value <= 1 << 16, f"vit.{name} must be from 1 to {1 << 16}, not {shown(value)}.")
        check(self.width % self.heads == 0, f"vit.width {self.width} cannot be split into {self.heads} heads.")
        check(
            self.activation in ("quick_gelu", "gelu", "gelu_tanh"),
            f"vit.activation must be quick_gelu, gelu or gelu_tanh, not {shown(self.activation)}.",
        )


@dataclass(frozen=True)
class TowerConfig:
    """The image tower: an open_clip image model by name, and which of its features are used.

    ``pretrained`` is an open_clip tag (``openai``) or a local file; ``None`` leaves the tower's weights to the
    checkpoint. ``feature_layer`` counts blocks from the end as LLaVA does (-2: the output of the block before the
    last, no final norm; -1 of the last). ``select`` keeps the ``patch`` features or the CLS part before them too.
    ``final_norm`` puts the tower's last norm behind that layer. ``vit`` is the shape of towers that have no name in
    open_clip (:mod:`mobillama_v.model.vision.plain_vit`).
    """

    model: str = "ViT-L-14-336-quickgelu"
    pretrained: str | None = None
    feature_layer: int = -2
    select: Literal["patch", "cls_patch"] = "patch"
    final_norm: bool = False
    vit: ViTShape | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check(
            self.feature_layer < 0, f"feature_layer counts from the end (-1, -2, …), not {shown(self.feature_layer)}."
        )
        check(
            self.select in ("patch", "cls_patch"), f"select must be 'patch' or 'cls_patch', not {shown(self.select)}."
        )
        check(isinstance(self.final_norm, bool), f"final_norm must be true or false, not {shown(self.final_norm)}.")
        if self.vit is not None and not isinstance(self.vit, ViTShape):
            try:
                object.__setattr__(self, "vit", ViTShape(**self.vit))
            except TypeError as error:
                raise ConfigError(f"vit is not the shape of a vision transformer ({error}).") from error

    def shape(self, image_size: int) -> TowerShape:
        """Its shape for square images of ``image_size`` pixels.

        Raises:
            ConfigError: there is no such model, or it is no vision transformer.
        """
        return tower_kind(self).shape(self, image_size)


@dataclass(frozen=True)
class TowerShape:
    """What the rest of a model needs to know of its tower: width Dv, extra tokens, patches P, blocks, parameters."""

    width: int
    prefix: int
    patches: int
    depth: int
    parameters: int

    def extra(self, spec: TowerConfig) -> int:
        """Tokens E kept beside the patches."""
        return self.prefix if spec.select == "cls_patch" else 0


@dataclass(frozen=True)
class PlainViT:
    """A vision transformer of which nothing but its shape must be known, whichever program computes it.

    Names and the rest are open_clip's: a class token, a norm before the blocks, 1e-5 beside a variance. With ``timm``
    they are timm's: neither of the two, a bias of the patch embedding, 1e-6.
    """

    shape: ViTShape
    timm: bool = False


class TowerKind(ABC):
    """A kind of image tower; none imports torch before :meth:`build`."""

    @abstractmethod
    def shape(self, spec: TowerConfig, image_size: int) -> TowerShape:
        """The tower's shape for square images of ``image_size`` pixels.

        Raises:
            ConfigError: there is no such model, or it is no vision transformer.
        """

    @abstractmethod
    def build(self, spec: TowerConfig, *, image_size: int, pretrained: bool) -> Any:
        """The :class:`~mobillama_v.model.vision.image_tower.ImageTower` in torch; see :func:`build_tower`."""

    def declared(self) -> Part | None:
        """The tower as a declared part, which runs over any array library; None where there is none."""
        return None

    def plain(self, spec: TowerConfig) -> PlainViT | None:
        """What the native engine must know of the tower to run it; None where it cannot."""
        return None


TOWERS: dict[str, TowerKind] = {}
"""All kinds by the names of their models."""

K = TypeVar("K", bound=type[TowerKind])


def register_tower(model: str) -> Callable[[K], K]:
    """Register the decorated :class:`TowerKind` for the open_clip name ``model``, or for :data:`ANY`.

    Raises:
        ValueError: another kind has that name.
    """

    def register(kind: K) -> K:
        if model in TOWERS:
            raise ValueError(f"there is a tower {model!r} already: {type(TOWERS[model]).__qualname__}")
        TOWERS[model] = kind()
        return kind

    return register


def tower_kind(spec: TowerConfig) -> TowerKind:
    """The kind of the tower that ``spec`` names."""
    return TOWERS.get(spec.model, TOWERS[ANY])


def build_tower(spec: TowerConfig, *, image_size: int, pretrained: bool = False) -> Any:
    """Make the tower that ``spec`` names: at random, or with ``pretrained`` holding the weights that it names.

    A model that is about to be filled from a checkpoint wants the former. It is made on torch's default device, which
    is how transformers makes models without memory.

    Raises:
        ConfigError: no such model or tag; a model whose activation (QuickGELU or not) is not the one that its
            weights were trained with; weights that are neither a known tag nor a file.
    """
    return tower_kind(spec).build(spec, image_size=image_size, pretrained=pretrained)


def check_layer(spec: TowerConfig, depth: int) -> None:
    """Refuse a layer that a tower of ``depth`` blocks does not have.

    Raises:
        ConfigError: see above.
    """
    if -spec.feature_layer > depth:
        raise ConfigError(
            f"tower {spec.model} has {depth} blocks; feature_layer {shown(spec.feature_layer)} is none of them."
        )


def read_features(visual: Any, pixel_values: Any, spec: TowerConfig, concatenate: Callable[..., Any]) -> Any:
    """Features [N,E+P,Dv] of the layer that ``spec`` names, of pixels [N,3,S,S].

    Args:
        visual: a tower with open_clip's interface, in any backend.
        pixel_values: arrays of that backend.
        spec: see above.
        concatenate: the backend's; takes arrays and an axis.
    """
    prefix = spec.select == "cls_patch"
    out = visual.forward_intermediates(
        pixel_values,
        indices=[spec.feature_layer],
        stop_early=True,
        normalize_intermediates=spec.final_norm,
        intermediates_only=True,
        output_fmt="NLC",
        output_extra_tokens=prefix,
    )
    patches = out["image_intermediates"][0]
    extra = out.get("image_intermediates_prefix")  # which a tower without a class token lacks
    return concatenate((extra[0], patches), 1) if extra else patches

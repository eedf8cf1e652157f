"""The table of projectors, and what a projector is.

A new one is one class, in any file that is imported before a model is loaded::

    @register_projector("mlp2x_silu")
    class SiluMLP(Projector):
        def linear_layers(self, tower_width, decoder_width):
            return {"linear_1": (tower_width, decoder_width), "linear_2": (decoder_width, decoder_width)}

        def forward(self, layers, features, *, extra, ops):
            return layers.linear_2(torch.nn.functional.silu(layers.linear_1(features)))

``{"type": "mlp2x_silu"}`` in a ``config.json`` then names it. Nothing here imports torch, so that a model's tokens and
parameters can be counted at once; :mod:`mobillama_v.projector.module` computes.

Shapes: N images, E extra (CLS) tokens, P patches, P' visual tokens an image, Dv tower width, D decoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from mobillama_v.errors import ConfigError
from mobillama_v.fields import shown

if TYPE_CHECKING:
    from torch import nn

PROJECTORS: dict[str, type[Projector]] = {}
"""Every registered projector by the name that ``config.json`` gives it."""


class Operations(Protocol):
    """What a portable projector may ask of the backend that computes it."""

    def gelu(self, x: Any, /) -> Any:
        """GELU of each element, the exact one."""
        ...

    def concatenate(self, arrays: Sequence[Any], axis: int, /) -> Any:
        """Arrays one after the other along ``axis``."""
        ...


class Projector:
    """A way from features of the tower [N,E+P,Dv] to visual tokens [N,P',D]; subclasses are registered."""

    type: ClassVar[str] = ""
    """Its name, given by :func:`register_projector`."""
    merges: ClassVar[bool] = False
    """Whether it makes one visual token of each square of ``factor`` x ``factor`` patches."""
    portable: ClassVar[bool] = False
    """Whether every backend can run it; see :func:`register_projector`."""
    bias: ClassVar[bool] = True
    """Whether its linear layers have one."""

    def __init__(self, factor: int = 1) -> None:
        if not (factor >= 2 if self.merges else factor == 1):
            wanted = "of 2 or more" if self.merges else "of 1"
            raise ConfigError(f"projector {self.type} needs a factor {wanted}, not {shown(factor)}.")
        self.factor = factor

    def num_tokens(self, extra: int, patches: int) -> int:
        """Visual tokens P' that it makes of E ``extra`` tokens and ``patches`` patches of an image.

        Raises:
            ConfigError: the patches cannot be merged.
        """
        return extra + patches

    def linear_layers(self, tower_width: int, decoder_width: int) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer; the names are those of its tensors."""
        raise NotImplementedError(f"{type(self).__name__} says nothing of its layers")

    def num_params(self, tower_width: int, decoder_width: int) -> int:
        """Its number of parameters."""
        shapes = self.linear_layers(tower_width, decoder_width).values()
        return sum((inputs + self.bias) * outputs for inputs, outputs in shapes)

    def layers(self, tower_width: int, decoder_width: int) -> dict[str, nn.Module]:
        """Its layers in torch, freshly initialized. A projector with others than linear ones makes them here."""
        from torch import nn

        shapes = self.linear_layers(tower_width, decoder_width)
        return {name: nn.Linear(inputs, outputs, bias=self.bias) for name, (inputs, outputs) in shapes.items()}

    def forward(self, layers: Any, features: Any, *, extra: int, ops: Operations) -> Any:
        """Project ``features`` [N,E+P,Dv] to [N,P',D].

        Args:
            layers: an object with every layer as an attribute to call.
            features: the tower's output, of the backend that computes.
            extra: how many tokens E stand before the patches.
            ops: the backend's operations.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward pass")


P = TypeVar("P", bound=type[Projector])


def register_projector(name: str, *, portable: bool = False) -> Callable[[P], P]:
    """Make ``config.json`` know a projector as ``name``.

    Args:
        name: of the type.
        portable: whether ``forward`` calls its linear layers and never reads their weights, and else uses only ``ops``
            and the methods that torch's tensors and numpy's arrays share. Backends without torch run such projectors,
            and engines may pack their layers. All others run in torch. A subclass does not inherit it.

    Raises:
        ValueError: another class has that name.
    """

    def register(projector: P) -> P:
        if name in PROJECTORS:
            raise ValueError(f"there is a projector {name!r} already: {PROJECTORS[name].__qualname__}")
        projector.type, projector.portable = name, portable
        PROJECTORS[name] = projector
        return projector

    return register


def get_projector(name: str, factor: int = 1) -> Projector:
    """The projector that a ``config.json`` names.

    Raises:
        ConfigError: no such type, or a factor that it cannot have.
    """
    if name not in PROJECTORS:
        raise ConfigError(f"projector type {shown(name)} is unknown; choose one of {', '.join(PROJECTORS)}.")
    return PROJECTORS[name](factor)

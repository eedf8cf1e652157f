"""Network parts that are written once and run on any array library.

A part is a class whose attributes declare its layers (:class:`Conv`, :class:`Linear`, :class:`LayerNorm`, parameters
and other parts) and whose ``forward`` computes with them and with ``self.ops``, a small table of operations. A backend
turns the declaration into something that runs: :func:`mobillama_v.model.vision.parts_torch.to_torch` makes torch
modules with gradients, :func:`mobillama_v.backends.numpy.layers.to_numpy` takes the arrays of a weight file.

Nothing is imported here: the size of a part is known at once. Arrays have the images first and the channels last.
Beside ``ops``, a forward pass uses only what arrays of numpy and of torch share: arithmetic, ``@``, indexing,
``reshape``, ``swapaxes``, ``clip``, ``argmax``, and sums, means and products over axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Ops(Protocol):
    """The operations that array libraries spell differently. An ``axis`` that is not named is the last one."""

    def gelu(self, x: Any) -> Any:
        """The exact GELU (arXiv 1606.08415)."""

    def relu(self, x: Any) -> Any:
        """Negative values become 0."""

    def relu6(self, x: Any) -> Any:
        """Clip to 0 … 6; may overwrite its input."""

    def sigmoid(self, x: Any) -> Any:
        """The logistic function."""

    def softmax(self, x: Any) -> Any:
        """Shares that sum to 1."""

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        """Scaled dot-product attention over [...,T,C], without a mask."""

    def topk(self, x: Any, k: int) -> tuple[Any, Any]:
        """The ``k`` greatest values, the greatest first, and their indices."""

    def argsort(self, x: Any) -> Any:
        """Indices in ascending order of the values; equal ones keep their order."""

    def sort(self, x: Any) -> Any:
        """Values in ascending order."""

    def amax(self, x: Any) -> Any:
        """The greatest value."""

    def take(self, x: Any, index: Any) -> Any:
        """Rows ``index`` [N,K] of the second axis of ``x`` [N,S,...]: [N,K,...]."""

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """``x`` where the condition is true, else ``y``."""

    def stack(self, arrays: Sequence[Any]) -> Any:
        """Arrays of one shape along a new last axis."""

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Arrays one after the other."""

    def repeat(self, x: Any, times: int, axis: int) -> Any:
        """Each entry of an axis several times."""

    def pad(self, x: Any) -> Any:
        """One zero around the last two axes."""

    def floor(self, x: Any) -> Any:
        """The next smaller whole number, as a float."""

    def integers(self, x: Any) -> Any:
        """Floats to integers, towards zero."""

    def like(self, values: Any, x: Any) -> Any:
        """Numbers, or an array of another type, as an array of the type of ``x``."""

    def arange(self, stop: int, x: Any) -> Any:
        """0 to ``stop`` - 1, where ``x`` lies."""

    def channels_last(self, pixels: Any) -> Any:
        """[N,C,H,W] to [N,H,W,C], in that order in memory."""


class Layer:
    """A declared layer. It runs once a backend has made it."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its tensors."""
        raise NotImplementedError

    def __call__(self, x: Any) -> Any:
        """Map an array; here only for the type checker.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{self} is only declared; give its part to a backend first")


@dataclass(frozen=True)
class Conv(Layer):
    """A square convolution [N,H,W,C] to [N,ceil(H/stride),ceil(W/stride),C'], with bias.

    It is padded with zeros as TensorFlow does, the odd one at the end. ``groups`` is 1, or the number of channels.
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weight [C',C/groups,kernel,kernel] and bias."""
        weight = (self.outputs, self.inputs // self.groups, self.kernel, self.kernel)
        return {"weight": weight, "bias": (self.outputs,)}


@dataclass(frozen=True)
class Linear(Layer):
    """[...,K] to [...,N], with bias."""

    inputs: int
    outputs: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weight [N,K] and bias."""
        return {"weight": (self.outputs, self.inputs), "bias": (self.outputs,)}


@dataclass(frozen=True)
class LayerNorm(Layer):
    """Layer normalization (arXiv 1607.06450) over the last axis, with scale and shift, and 1e-5 beside the variance."""

    width: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weight and bias."""
        return {"weight": (self.width,), "bias": (self.width,)}


@dataclass(frozen=True)
class Parameter:
    """A tensor of its own: normally distributed with deviation ``std`` at first, which may be 0."""

    shape: tuple[int, ...]
    std: float = 0.0
    trained: bool = True


def parameter(*shape: int, std: float = 0.0, trained: bool = True) -> Any:
    """Declare a tensor; it is typed as what a backend makes of it."""
    return Parameter(shape, std, trained)


class Part:
    """A part of a network; see the text of this module."""

    ops: Ops

    def forward(self, *arrays: Any) -> Any:
        """What the part computes; the arguments are the part's own."""
        raise NotImplementedError

    def __call__(self, *arrays: Any) -> Any:
        """:meth:`forward`."""
        return self.forward(*arrays)


def tensor_shapes(declared: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of all tensors of a declared part, in the order of its attributes."""
    if isinstance(declared, Layer):
        yield from declared.shapes().values()
    elif isinstance(declared, Parameter):
        yield declared.shape
    elif isinstance(declared, Part | list):
        for each in vars(declared).values() if isinstance(declared, Part) else declared:
            yield from tensor_shapes(each)


def num_params(declared: Part) -> int:
    """Parameters of a declared part."""
    return sum(math.prod(shape) for shape in tensor_shapes(declared))

"""Network parts that are written once and run on any array library.

A part is a class whose attributes declare its layers (:class:`Conv`, :class:`Linear`, :class:`LayerNorm`, parameters
and other parts) and whose ``forward`` computes with them. A backend turns the declaration into something that runs:
:func:`mobillama_v.model.vision.parts_torch.to_torch` makes torch modules with gradients,
:func:`mobillama_v.backends.numpy.layers.to_numpy` takes the arrays of a weight file. Nothing is imported here: the size
of a part is known at once.

Arrays have the images first and the channels last. A forward pass uses what arrays of numpy and of torch share
(arithmetic, ``@``, indexing, ``reshape``, ``swapaxes``, ``clip``, ``argmax``, ``cumsum``, sums and means over axes) and
``self.ops``, a table of the operations that libraries spell differently. Where none is given, the axis is the last:

- ``gelu(x)`` (exact, arXiv 1606.08415), ``relu6(x)`` (may overwrite ``x``), ``sigmoid(x)``, ``softmax(x)``;
- ``attention(q, k, v)``: scaled dot products over [...,T,C], without a mask;
- ``topk(x, k)``: the greatest values, the greatest first, and their indices; ``amax(x)``: the greatest;
- ``argsort(x)``: ascending, equal values in their order;
- ``take(x, index)``: rows ``index`` [N,K] of the second axis of ``x`` [N,S,...], as [N,K,...];
- ``where(condition, x, y)``, ``stack(arrays)`` along a new last axis, ``concatenate(arrays, axis)``;
- ``repeat(x, times, axis)``: each entry several times; ``pad(x)``: one zero around the last two axes;
- ``integers(x)``: cut off the fractions; ``like(values, x)``: numbers or an array, in the type of ``x``;
- ``arange(stop, x)``: 0 to ``stop`` - 1, where ``x`` lies;
- ``channels_last(x)``: [N,C,H,W] to [N,H,W,C], in that order in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


class Layer:
    """A declared layer: names and shapes of its tensors. It runs once a backend has made it."""

    shapes: dict[str, tuple[int, ...]]

    def __call__(self, x: Any) -> Any:
        """Map an array; here only for the type checker.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"this {type(self).__name__} is only declared; give its part to a backend first")


class Conv(Layer):
    """A square convolution [N,H,W,C] to [N,ceil(H/stride),ceil(W/stride),C'], with bias.

    It is padded with zeros as TensorFlow does, the odd one at the end. ``groups`` is 1, or the number of channels.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        self.inputs, self.outputs, self.kernel, self.stride, self.groups = inputs, outputs, kernel, stride, groups
        self.shapes = {"weight": (outputs, inputs // groups, kernel, kernel), "bias": (outputs,)}


class Linear(Layer):
    """[...,K] to [...,N], with bias unless it is said that there is none."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        self.inputs, self.outputs, self.bias = inputs, outputs, bias
        self.shapes = {"weight": (outputs, inputs)} | ({"bias": (outputs,)} if bias else {})


class LayerNorm(Layer):
    """Layer normalization (arXiv 1607.06450) over the last axis, with scale and shift, and 1e-5 beside the variance."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.shapes = {"weight": (width,), "bias": (width,)}


class Parameter:
    """A tensor of its own: normally distributed with deviation ``std`` at first, which may be 0."""

    def __init__(self, shape: tuple[int, ...], std: float, trained: bool) -> None:
        self.shape, self.std, self.trained = shape, std, trained


def parameter(*shape: int, std: float = 0.0, trained: bool = True) -> Any:
    """Declare a tensor; it is typed as what a backend makes of it."""
    return Parameter(shape, std, trained)


class Part:
    """A part of a network; see the text of this module."""

    ops: Any
    """The backend's operations."""

    def forward(self, *arrays: Any) -> Any:
        """What the part computes; the arguments are the part's own."""
        raise NotImplementedError

    def __call__(self, *arrays: Any) -> Any:
        """:meth:`forward`."""
        return self.forward(*arrays)


def tensor_shapes(declared: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of all tensors of a declared part, in the order of its attributes."""
    if isinstance(declared, Layer):
        yield from declared.shapes.values()
    elif isinstance(declared, Parameter):
        yield declared.shape
    elif isinstance(declared, Part | list):
        for each in vars(declared).values() if isinstance(declared, Part) else declared:
            yield from tensor_shapes(each)


def num_params(declared: Part) -> int:
    """How many parameters a declared part has."""
    return sum(math.prod(shape) for shape in tensor_shapes(declared))

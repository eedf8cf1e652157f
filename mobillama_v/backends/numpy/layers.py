"""Declared parts (:mod:`mobillama_v.model.vision.parts`) over numpy in fp32, with the arrays of a weight file.

Channels are last, so that a convolution is a product with a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from mobillama_v.errors import CheckpointError
from mobillama_v.model.vision import parts
from mobillama_v.model.vision.parts import Part

Array: TypeAlias = "np.ndarray[Any, Any]"

_EPS = 1e-5
_STRIP = 1 << 16  # values of a strip of a depthwise convolution, few enough to stay in a core's own cache
_HALF_BITS, _HALF_SCALE, _HALF_LARGEST = np.int32(-0x70002000), np.float32(2.0**112), 65504


class MisfitError(Exception):
    """A tensor that is not there, or has another shape than the layer that takes it; says what was found instead."""


class Tensors:
    """Tensors of a file by name, to be taken once each by who knows their shapes."""

    def __init__(self, tensors: Mapping[str, Array], prefix: str = "", left: set[str] | None = None) -> None:
        self._tensors, self._prefix = tensors, prefix
        self.left = set(tensors) if left is None else left
        """Names that nobody has taken."""

    def under(self, name: str) -> Tensors:
        """Those whose names begin with ``name`` and a dot."""
        return Tensors(self._tensors, f"{self._prefix}{name}.", self.left)

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return self._prefix + name in self._tensors

    def discard(self, name: str) -> None:
        """Leave out that tensor, or all under that name."""
        whole = self._prefix + name
        self.left -= {each for each in self.left if each == whole or each.startswith(f"{whole}.")}

    def take(self, name: str, *shape: int, kind: str = "f") -> Array:
        """One of them, of the type that the file gives it.

        Raises:
            MisfitError: it is not there, or of another shape, or of another kind of numpy's.
        """
        whole = self._prefix + name
        tensor = self._tensors.get(whole)
        if tensor is None or tensor.shape != shape or tensor.dtype.kind != kind:
            raise MisfitError(f"no {whole} of the shape {list(shape)}")
        self.left.discard(whole)
        return tensor

    def floats(self, name: str, *shape: int) -> Array:
        """:meth:`take` to fp32.

        Raises:
            CheckpointError: a norm or a bias that is not finite.
        """
        tensor = self.take(name, *shape)
        if tensor.dtype == np.float16:
            tensor = widened(tensor)
        tensor = tensor.astype(np.float32, copy=False)
        if tensor.ndim < 2 and not np.isfinite(tensor).all():
            raise CheckpointError(f"{self._prefix}{name} holds numbers that are not finite; copy the model again.")
        return tensor

    def matrix(self, layer: parts.Conv | parts.Linear) -> _Matrix:
        """The weight of a layer, [N,...], as a matrix.

        Raises:
            MisfitError: as :meth:`take`.
        """
        stored = self.take("weight", *layer.shapes["weight"])
        return _Matrix(
            (stored if stored.dtype == np.float16 else stored.astype(np.float32, copy=False)).reshape(len(stored), -1)
        )

    def declared(self, layer: parts.Layer) -> list[Array]:
        """All tensors of a layer, in fp32."""
        return [self.floats(name, *shape) for name, shape in layer.shapes.items()]


def widened(halves: Array) -> Array:
    """The numbers of an fp16 array in fp32; numpy's own way takes twice as long.

    Bits are moved to their places in fp32, whose exponents count from another number.
    """
    out = np.empty(halves.shape, np.float32)
    source, target = halves.reshape(-1), out.reshape(-1)
    for start in range(0, source.size, _STRIP):
        half, values = source[start : start + _STRIP], target[start : start + _STRIP]
        bits = values.view(np.int32)
        bits[...] = half.view(np.int16)
        bits <<= 13
        bits &= _HALF_BITS
        values *= _HALF_SCALE
        if values.max() > _HALF_LARGEST or values.min() < -_HALF_LARGEST:
            values[...] = half  # which holds infinities, or what is no number
    return out


class _Matrix:
    """A matrix [N,K] of a file, which gives [K,N] in fp32.

    One in fp16 is converted at each of its first two calls, and kept from the second on. A single picture needs each
    matrix once, and numbers that stay in the processor's cache ask the system for no memory.
    """

    def __init__(self, stored: Array) -> None:
        self._stored, self._asked = stored, False

    def __call__(self) -> Array:
        """The matrix."""
        values = widened(self._stored) if self._stored.dtype == np.float16 else self._stored
        if self._asked:
            self._stored = values
        self._asked = True
        return values.T


class Linear:
    """[...,K] to [...,N]."""

    def __init__(self, tensors: Tensors, declared: parts.Linear) -> None:
        self._weight = tensors.matrix(declared)
        self._bias = tensors.floats("bias", declared.outputs) if declared.bias else np.float32(0)

    def __call__(self, x: Array) -> Array:
        """The product of each row."""
        y: Array = x.reshape(-1, x.shape[-1]) @ self._weight()
        y += self._bias
        return y.reshape(*x.shape[:-1], -1)


class LayerNorm:
    """Over the last axis."""

    def __init__(self, tensors: Tensors, declared: parts.LayerNorm) -> None:
        self._weight, self._bias = tensors.declared(declared)

    def __call__(self, x: Array) -> Array:
        """The standardized rows."""
        off = x - x.mean(-1, keepdims=True)
        variance = np.square(off).mean(-1, keepdims=True)
        return off / np.sqrt(variance + np.float32(_EPS)) * self._weight + self._bias


class Conv:
    """A square convolution, [N,H,W,C] to [N,ceil(H/stride),ceil(W/stride),C'], padded as TensorFlow does."""

    def __init__(self, tensors: Tensors, declared: parts.Conv) -> None:
        self._weight, self._bias = tensors.matrix(declared), tensors.floats("bias", declared.outputs)
        self._kernel, self._stride = declared.kernel, declared.stride

    def __call__(self, x: Array) -> Array:
        """The convolved pictures."""
        if self._kernel == 1:
            return self._finish(x.reshape(-1, x.shape[-1]), x.shape[:3])
        windows = np.lib.stride_tricks.sliding_window_view(
            padded(x, self._kernel, self._stride), (self._kernel, self._kernel), axis=(1, 2)
        )[:, :: self._stride, :: self._stride]
        return self._finish(windows.reshape(-1, x.shape[-1] * self._kernel**2), windows.shape[:3])

    def _finish(self, rows: Array, shape: tuple[int, ...]) -> Array:
        y: Array = rows @ self._weight()
        y += self._bias
        return y.reshape(*shape, -1)


class DepthwiseConv:
    """A convolution of each channel by itself, padded as :class:`Conv`."""

    def __init__(self, tensors: Tensors, declared: parts.Conv) -> None:
        weight, self._bias = tensors.declared(declared)
        self._weight = np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))  # [k,k,C]
        self._kernel, self._stride = declared.kernel, declared.stride

    def __call__(self, x: Array) -> Array:
        """Map [N,H,W,C] to [N,ceil(H/stride),ceil(W/stride),C]."""
        images, rows, columns = len(x), *(-(-side // self._stride) for side in x.shape[1:3])
        y = np.empty((images, rows, columns, x.shape[-1]), np.float32)
        y[:] = self._bias
        for each, out in zip(padded(x, self._kernel, self._stride), y, strict=True):
            self._add(each, out)
        return y

    def _add(self, x: Array, y: Array) -> None:
        """Add one padded picture's products to ``y`` [rows,columns,C], strip by strip."""
        kernel, stride = self._kernel, self._stride
        rows, columns, channels = y.shape
        step = max(1, _STRIP // (columns * channels))
        product = np.empty((step, columns, channels), np.float32)
        for top in range(0, rows, step):
            strip = y[top : top + step]
            part = product[: len(strip)]
            for i in range(kernel):
                lines = x[top * stride + i :: stride][: len(strip)]
                for j in range(kernel):
                    np.multiply(lines[:, j : j + stride * columns : stride], self._weight[i, j], out=part)
                    strip += part


def padded(x: Array, kernel: int, stride: int) -> Array:
    """Pictures [N,H,W,C] with the zeros around them that TensorFlow adds."""
    total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[1:3]]
    top, left = (each // 2 for each in total)
    out = np.zeros((len(x), x.shape[1] + total[0], x.shape[2] + total[1], x.shape[3]), np.float32)
    out[:, top : top + x.shape[1], left : left + x.shape[2]] = x
    return out


class _NumpyOps:
    """The operations of :mod:`mobillama_v.model.vision.parts` over arrays."""

    where, repeat, concatenate = staticmethod(np.where), staticmethod(np.repeat), staticmethod(np.concatenate)

    def relu6(self, x: Array) -> Array:
        return np.clip(x, 0, 6, out=x)

    def gelu(self, x: Array) -> Array:
        """x times the normal distribution's share below it.

        numpy has no error function; this is formula 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical
        Functions (1964), whose error of 1.5e-7 is about that of an fp32 number.
        """
        z = np.abs(x) * np.float32(0.5**0.5)
        t = 1 / (1 + np.float32(0.3275911) * z)
        series = np.zeros_like(t)
        for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
            series = (series + np.float32(factor)) * t
        tail = np.float32(0.5) * series * np.exp(-z * z)  # of the share beyond |x|
        return x * np.where(x < 0, tail, 1 - tail)

    def sigmoid(self, x: Array) -> Array:
        """Also of numbers whose exponentials fp32 cannot hold."""
        return 1 / (1 + np.exp(-np.clip(x, -87, 87)))

    def softmax(self, x: Array) -> Array:
        powers = np.exp(x - x.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def attention(self, q: Array, k: Array, v: Array) -> Array:
        scores = q @ k.swapaxes(-1, -2) * np.float32(q.shape[-1] ** -0.5)
        return self.softmax(scores) @ v

    def topk(self, x: Array, k: int) -> tuple[Array, Array]:
        index = np.argsort(-x, axis=-1, kind="stable")[..., :k]
        return np.take_along_axis(x, index, -1), index

    def argsort(self, x: Array) -> Array:
        return np.argsort(x, axis=-1, kind="stable")

    def amax(self, x: Array) -> Array:
        return x.max(-1)

    def take(self, x: Array, index: Array) -> Array:
        return x[np.arange(len(x))[:, None], index]

    def stack(self, arrays: Sequence[Array]) -> Array:
        return np.stack(arrays, axis=-1)

    def pad(self, x: Array) -> Array:
        return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1)] * 2)

    def integers(self, x: Array) -> Array:
        return x.astype(np.int64)

    def like(self, values: Any, x: Array) -> Array:
        return np.asarray(values, x.dtype)

    def arange(self, stop: int, x: Array) -> Array:
        return np.arange(stop)

    def channels_last(self, pixels: Array) -> Array:
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


NUMPY = _NumpyOps()


def to_numpy(part: Part, tensors: Tensors) -> Any:
    """Let ``part`` run: its declared layers are replaced by those that hold ``tensors``, named by its attributes.

    Raises:
        MisfitError: one that is not there, or has another shape than declared.
    """
    part.ops = NUMPY
    for name, value in vars(part).items():
        if name != "ops":
            setattr(part, name, _made(value, tensors, name))
    return part


def _made(declared: Any, tensors: Tensors, name: str) -> Any:
    under = tensors.under(name)
    match declared:
        case Part():
            return to_numpy(declared, under)
        case list():
            return [_made(each, under, str(i)) for i, each in enumerate(declared)]
        case parts.Conv():
            return Conv(under, declared) if declared.groups == 1 else DepthwiseConv(under, declared)
        case parts.Linear():
            return Linear(under, declared)
        case parts.LayerNorm():
            return LayerNorm(under, declared)
        case parts.Parameter():
            return tensors.floats(name, *declared.shape)
    return declared

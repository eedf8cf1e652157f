"""The layers of the hybrid tower for one image, over numpy in fp32; what torch's layers of these names compute.

Pictures are rows, columns and channels [H,W,C], so that a convolution is a product with a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"

_EPS = 1e-5
_STRIP = 1 << 16  # values of a strip of a depthwise convolution, few enough to stay in a core's own cache


class MisfitError(Exception):
    """A tensor that is not there, or has another shape than the layer that takes it."""


class Tensors:
    """Tensors of a file by name, to be taken once each by who knows their shapes."""

    def __init__(self, tensors: Mapping[str, Array], prefix: str = "", left: set[str] | None = None) -> None:
        self._tensors, self._prefix = tensors, prefix
        self.left = set(tensors) if left is None else left
        """Names that nobody has taken."""

    def under(self, name: str) -> Tensors:
        """Those whose names begin with ``name`` and a dot."""
        return Tensors(self._tensors, f"{self._prefix}{name}.", self.left)

    def take(self, name: str, *shape: int) -> Array:
        """One of them, of the type that the file gives it.

        Raises:
            MisfitError: it is not there, or of another shape, or no floats.
        """
        whole = self._prefix + name
        tensor = self._tensors.get(whole)
        if tensor is None or tensor.shape != shape or tensor.dtype.kind != "f":
            raise MisfitError(whole)
        self.left.discard(whole)
        return tensor

    def floats(self, name: str, *shape: int) -> Array:
        """:meth:`take` to fp32."""
        return self.take(name, *shape).astype(np.float32, copy=False)


class Linear:
    """[...,K] to [...,N]."""

    def __init__(self, tensors: Tensors, inputs: int, outputs: int) -> None:
        self._weight, self._bias = tensors.floats("weight", outputs, inputs).T, tensors.floats("bias", outputs)

    def __call__(self, x: Array) -> Array:
        """The product of each row."""
        y: Array = x.reshape(-1, x.shape[-1]) @ self._weight
        y += self._bias
        return y.reshape(*x.shape[:-1], -1)


class LayerNorm:
    """Over the last axis."""

    def __init__(self, tensors: Tensors, width: int) -> None:
        self._weight, self._bias = tensors.floats("weight", width), tensors.floats("bias", width)

    def __call__(self, x: Array) -> Array:
        """The standardized rows."""
        off = x - x.mean(-1, keepdims=True)
        variance = np.square(off).mean(-1, keepdims=True)
        return off / np.sqrt(variance + np.float32(_EPS)) * self._weight + self._bias


class Conv:
    """A square convolution, [H,W,C] to [ceil(H/stride),ceil(W/stride),C'].

    Padded as TensorFlow does, the odd pixel at the end; with an odd kernel and stride 1 that is torch's kernel // 2.
    """

    def __init__(self, tensors: Tensors, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        weight = tensors.floats("weight", outputs, inputs, kernel, kernel)
        self._weight = weight.reshape(outputs, -1).T
        self._bias = tensors.floats("bias", outputs)
        self._kernel, self._stride = kernel, stride

    def __call__(self, x: Array) -> Array:
        """The convolved picture."""
        if self._kernel == 1:
            return self._finish(x.reshape(-1, x.shape[-1]), x.shape[:2])
        windows = np.lib.stride_tricks.sliding_window_view(
            padded(x, self._kernel, self._stride), (self._kernel, self._kernel), axis=(0, 1)
        )[:: self._stride, :: self._stride]
        return self._finish(windows.reshape(-1, self._weight.shape[0]), windows.shape[:2])

    def _finish(self, rows: Array, shape: tuple[int, ...]) -> Array:
        y: Array = rows @ self._weight
        y += self._bias
        return y.reshape(*shape, -1)


class DepthwiseConv:
    """A convolution of each channel by itself, padded as :class:`Conv`."""

    def __init__(self, tensors: Tensors, channels: int, kernel: int, stride: int) -> None:
        weight = tensors.floats("weight", channels, 1, kernel, kernel)
        self._weight = np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))  # [k,k,C]
        self._bias = tensors.floats("bias", channels)
        self._kernel, self._stride = kernel, stride

    def __call__(self, x: Array) -> Array:
        """Map [H,W,C] to [ceil(H/stride),ceil(W/stride),C]."""
        kernel, stride = self._kernel, self._stride
        rows, columns = (-(-side // stride) for side in x.shape[:2])
        x = padded(x, kernel, stride)
        y = np.empty((rows, columns, x.shape[-1]), np.float32)
        y[:] = self._bias
        step = max(1, _STRIP // (columns * x.shape[-1]))
        product = np.empty((step, *y.shape[1:]), np.float32)
        for top in range(0, rows, step):
            strip = y[top : top + step]
            part = product[: len(strip)]
            for i in range(kernel):
                lines = x[top * stride + i :: stride][: len(strip)]
                for j in range(kernel):
                    np.multiply(lines[:, j : j + stride * columns : stride], self._weight[i, j], out=part)
                    strip += part
        return y


def padded(x: Array, kernel: int, stride: int) -> Array:
    """A picture with the zeros around it that TensorFlow adds."""
    total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[:2]]
    top, left = (each // 2 for each in total)
    out = np.zeros((x.shape[0] + total[0], x.shape[1] + total[1], x.shape[2]), np.float32)
    out[top : top + x.shape[0], left : left + x.shape[1]] = x
    return out


def sigmoid(x: Array) -> Array:
    """Also of numbers whose exponentials fp32 cannot hold."""
    return 1 / (1 + np.exp(-np.clip(x, -87, 87)))


def softmax(x: Array) -> Array:
    """Over the last axis."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def relu6(x: Array) -> Array:
    """In place."""
    return np.clip(x, 0, 6, out=x)


def gelu(x: Array) -> Array:
    """x times the normal distribution's share below it.

    numpy has no error function; this is formula 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions
    (1964), whose error of 1.5e-7 is about that of an fp32 number.
    """
    z = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(factor)) * t
    tail = np.float32(0.5) * series * np.exp(-z * z)  # of the share beyond |x|
    return x * np.where(x < 0, tail, 1 - tail)

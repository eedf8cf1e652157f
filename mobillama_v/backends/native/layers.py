"""Image towers and single layers in the native library, over numpy; nothing here imports torch.

Shapes: N images, S image side, T tokens that are given out, D width, A row panels of 16 rows, B blocks of 32 columns.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence

import numpy as np

from mobillama_v.backends.native import library
from mobillama_v.backends.native.packed_format import Array
from mobillama_v.model.vision import PlainViT, TowerConfig

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
"""In the library's order."""


class ThreadPool:
    """Threads of the native library that layers share; calls from several threads take turns."""

    def __init__(self, threads: int, *, path: str | None = None) -> None:
        """Start ``threads`` (the calling one included) on a kernel path.

        ``path`` is one of :func:`mobillama_v.backends.native.library.paths`; None means the fastest.

        Raises:
            RuntimeError: there is no library, or no such path here.
        """
        lib = library.library()
        self.handle = lib.mv_thread_pool_new(threads, library.encoded(path))
        if not self.handle:
            raise RuntimeError(f"the native engine: {library.error()}")
        self._free = weakref.finalize(self, lib.mv_thread_pool_free, self.handle)
        self.path: str = lib.mv_thread_pool_path(self.handle).decode()

    def linear(self, tiles: Array, bias: Array | None, x: Array, rows: int) -> Array:
        """The packed matrix ``tiles`` [A,B,bytes] times ``x`` [...,columns], plus ``bias`` [rows]; fp32 [...,rows].

        Raises:
            RuntimeError: ``tiles`` are not those of a matrix of that shape with 8 or 16 bits.
        """
        columns = x.shape[-1]
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty((*x.shape[:-1], rows), np.float32)
        if bias is not None:
            bias = np.ascontiguousarray(bias, np.float32)
        weights = library.Span(tiles.ctypes.data, tiles.nbytes)
        where = None if bias is None else bias.ctypes.data
        count = x.size // columns
        if library.library().mv_linear(
            self.handle, ctypes.byref(weights), rows, columns, where, x.ctypes.data, count, y.ctypes.data
        ):
            raise RuntimeError(f"the native engine: {library.error()}")
        return y

    def activate(self, kind: str, x: Array) -> Array:
        """One of :data:`ACTIVATIONS` of each element, fp32.

        Raises:
            ValueError: there is no such activation.
        """
        y = np.array(x, np.float32, order="C")
        library.library().mv_activate(self.handle, ACTIVATIONS.index(kind), y.ctypes.data, y.size)
        return y


class NativeTower:
    """A plain vision transformer up to the layer that its configuration names."""

    def __init__(
        self, pool: ThreadPool, vit: PlainViT, spec: TowerConfig, image_size: int, tensors: Sequence[Array]
    ) -> None:
        """Hand a tower to the library.

        Args:
            pool: computes.
            vit: what it is.
            spec: which of its features are used.
            image_size: side of the images.
            tensors: as ``csrc/engine.h`` says; they stay as long as this object lives.

        Raises:
            RuntimeError: the library refuses it.
        """
        shape, side = vit.shape, image_size // vit.shape.patch
        keeps = spec.select == "cls_patch" and not vit.timm
        config = library.TowerConfig(
            eps=1e-6 if vit.timm else 1e-5,
            image=image_size,
            patch=shape.patch,
            width=shape.width,
            layers=shape.layers + 1 + spec.feature_layer,
            heads=shape.heads,
            mlp=shape.mlp,
            activation=ACTIVATIONS.index(shape.activation),
            class_token=not vit.timm,
            keep_class=keeps,
            pre_norm=not vit.timm,
            final_norm=spec.final_norm,
        )
        self._image_size, self._out = image_size, (side * side + keeps, shape.width)
        self._pool, self._tensors = pool, tensors  # the library uses them where they are
        spans = (library.Span * len(tensors))(*(library.Span(each.ctypes.data, each.nbytes) for each in tensors))
        lib = library.library()
        self.handle = lib.mv_tower_new(pool.handle, ctypes.byref(config), spans, len(tensors))
        if not self.handle:
            raise RuntimeError(f"the native engine refuses this image tower: {library.error()}")
        self._free = weakref.finalize(self, _free_tower, self.handle, pool)

    def __call__(self, pixels: Array) -> Array:
        """Features [N,T,D] of pixels [N,3,S,S], fp32; an image's are the same whatever is beside it.

        Raises:
            ValueError: images of another size.
            RuntimeError: there is not enough memory.
        """
        side = self._image_size
        if pixels.shape[1:] != (3, side, side):
            raise ValueError(f"images are {list(pixels.shape[1:])} and the tower takes {[3, side, side]}")
        pixels = np.ascontiguousarray(pixels, np.float32)
        features = np.empty((len(pixels), *self._out), np.float32)
        if library.library().mv_tower_encode(self.handle, pixels.ctypes.data, len(pixels), features.ctypes.data):
            raise RuntimeError(f"the native engine: {library.error()}")
        return features


def _free_tower(handle: int, _pool: ThreadPool) -> None:
    """Free a tower, whose threads must not have ended before."""
    library.library().mv_tower_free(handle)

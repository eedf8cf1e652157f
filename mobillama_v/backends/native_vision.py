"""Image tower and projector in the native engine: plain vision transformers, from packed or half-precision files.

Shapes: P' visual tokens an image, D decoder width, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from mobillama_v.backends.native import library
from mobillama_v.backends.native.layers import NativeTower, ThreadPool
from mobillama_v.backends.native.pack import pack_fp16
from mobillama_v.backends.native.packed_format import holds_numbers, tiles_shape
from mobillama_v.backends.numpy.layers import Array, Tensors
from mobillama_v.backends.numpy.model import NumpyVisionEncoder
from mobillama_v.config import ModelConfig
from mobillama_v.errors import CheckpointError
from mobillama_v.model.vision import PlainViT, TowerConfig, parts, tower_kind

if TYPE_CHECKING:
    from mobillama_v.model.vlm import VisionLanguageModel

_UNUSED = ("proj", "ln_post", "norm", "fc_norm", "attn_pool", "head")
"""What a tower has beside what its features of inner layers need."""


class NativeVisionEncoder(NumpyVisionEncoder):
    """Image tower and projector in the native library, for models that :func:`supports` finds no fault with.

    Matrices are multiplied as they lie in the file where they have 8 bits; all others get 16.
    """

    def __init__(
        self, tensors: Tensors, spec: ModelConfig, make_network: Callable[[], VisionLanguageModel], threads: int
    ) -> None:
        """Take the tensors of tower and projector; errors as in the base class."""
        self._pool = ThreadPool(threads)
        self.ops = SimpleNamespace(gelu=partial(self._pool.activate, "gelu"), concatenate=np.concatenate)
        super().__init__(tensors, spec, make_network)

    def make_tower(self, tensors: Tensors) -> NativeTower:
        """The tower in the library."""
        vit = tower_kind(self.spec.tower).plain(self.spec.tower)
        assert vit is not None
        size = self.spec.image.size
        return NativeTower(
            self._pool, vit, self.spec.tower, size, list(tower_tensors(vit, self.spec.tower, size, tensors))
        )

    def make_linear(self, tensors: Tensors, declared: parts.Linear) -> Any:
        """A layer of the projector in the library."""
        tiles = _matrix(tensors, "", declared.outputs, declared.inputs)
        bias = tensors.floats("bias", declared.outputs) if declared.bias else None
        return lambda x: self._pool.linear(tiles, bias, x, declared.outputs)


def supports(config: ModelConfig) -> str:
    """Why the native engine cannot run a model's tower or projector; empty where it can."""
    vit = tower_kind(config.tower).plain(config.tower)
    if vit is None:
        return f"the native engine does not compute the image tower {config.tower.model}"
    if -config.tower.feature_layer > vit.shape.layers:
        return f"the image tower has no layer {config.tower.feature_layer}"
    if not config.projector.kind.portable:
        return f"the native engine does not compute the projector {config.projector.type}"
    return library.missing()


def tower_tensors(vit: PlainViT, spec: TowerConfig, image_size: int, tensors: Tensors) -> Iterator[Array]:
    """A tower's tensors in the order of ``csrc/engine.h``; errors as :class:`NativeVisionEncoder`."""
    shape, width = vit.shape, vit.shape.width
    side = image_size // shape.patch
    patches, pixels = side * side, (3, shape.patch, shape.patch)
    trunk = tensors.under("trunk") if vit.timm else tensors
    embedding = "patch_embed.proj" if vit.timm else "conv1"
    yield pack_fp16(trunk.floats(f"{embedding}.weight", width, *pixels).reshape(width, -1), embedding)
    if vit.timm:
        positions = trunk.floats("pos_embed", 1, patches, width)[0] + trunk.floats(f"{embedding}.bias", width)
    else:
        positions = trunk.floats("positional_embedding", patches + 1, width).copy()
        positions[0] += trunk.floats("class_embedding", width)
    yield np.ascontiguousarray(positions)
    if not vit.timm:
        yield from _norm(trunk.under("ln_pre"), width)
    for i in range(shape.layers):
        made = list(_block(trunk.under(f"blocks.{i}" if vit.timm else f"transformer.resblocks.{i}"), vit))
        if i <= shape.layers + spec.feature_layer:
            yield from made
    if spec.final_norm:
        yield from _norm(trunk.under("norm" if vit.timm else "ln_post"), width)
    for name in _UNUSED:
        trunk.discard(name)


def _block(tensors: Tensors, vit: PlainViT) -> Iterator[Array]:
    width, mlp = vit.shape.width, vit.shape.mlp
    norms = ("norm1", "norm2") if vit.timm else ("ln_1", "ln_2")
    qkv, out, up, down = (
        ("attn.qkv.", "attn.proj.", "mlp.fc1.", "mlp.fc2.")
        if vit.timm
        else ("attn.in_proj.", "attn.out_proj.", "mlp.c_fc.", "mlp.c_proj.")
    )
    if not vit.timm and not tensors.has(f"{qkv}tiles"):
        qkv = "attn.in_proj_"  # torch's attention holds these tensors itself
    yield from _norm(tensors.under(norms[0]), width)
    yield from _linear(tensors, qkv, 3 * width, width)
    yield from _linear(tensors, out, width, width)
    yield from _norm(tensors.under(norms[1]), width)
    yield from _linear(tensors, up, mlp, width)
    yield from _linear(tensors, down, width, mlp)


def _norm(tensors: Tensors, width: int) -> Iterator[Array]:
    yield from (np.ascontiguousarray(tensors.floats(name, width)) for name in ("weight", "bias"))


def _linear(tensors: Tensors, name: str, rows: int, columns: int) -> Iterator[Array]:
    yield _matrix(tensors, name, rows, columns)
    yield np.ascontiguousarray(tensors.floats(f"{name}bias", rows))


def _matrix(tensors: Tensors, name: str, rows: int, columns: int) -> Array:
    """Tiles of a layer's matrix: those of the file, or its weights in 16 bits.

    Raises:
        MisfitError: there are neither of that shape.
        CheckpointError: numbers that are not finite.
    """
    if not tensors.has(f"{name}tiles"):
        return pack_fp16(tensors.take(f"{name}weight", rows, columns), f"{name}weight")
    tiles = tensors.take(f"{name}tiles", *tiles_shape(rows, columns, 8), kind="u")
    if not holds_numbers(tiles, 8):
        raise CheckpointError(f"the model is damaged ({name}tiles holds scales that are not finite); copy it again.")
    return tiles

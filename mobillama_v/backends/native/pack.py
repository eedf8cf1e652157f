"""Pack a decoder: which of its tensors make up which packed matrix, and what a packed one means. Without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from mobillama_v.backends.native.packed_format import (
    BLOCK,
    ROWS,
    Array,
    Packed,
    ffn_rows,
    holds_numbers,
    layout,
    tiles_shape,
)
from mobillama_v.config import DecoderConfig
from mobillama_v.errors import CheckpointError

_LARGEST = 65504.0  # number of fp16
HEAD = "lm_head.weight"


class GetTensor(Protocol):
    """A function that returns a decoder's tensor, as floats.

    Names are those in a :class:`~mobillama_v.model.decoder.Decoder`, and :data:`HEAD`.
    """

    def __call__(self, name: str, *shape: int) -> Array:
        """``shape`` is the one that it must have."""
        ...


def check_fp16_range(weight: Array, name: str) -> None:
    """See that fp16 can hold ``weight``.

    Raises:
        CheckpointError: numbers that are not finite, or too large.
    """
    if weight.dtype == np.float16:  # whose numbers are slow to compare
        fits = holds_numbers(weight, 16)
    else:
        fits = weight.min() >= -_LARGEST and weight.max() <= _LARGEST  # a comparison is false where there is no number
    if not fits:
        raise CheckpointError(f"{name} holds weights that are not finite, or too large for 16 bits; it is damaged.")


def pack_fp16(weight: Array, name: str) -> Array:
    """Pack ``weight`` [N,K] of any float type to 16-bit tiles [A,B,1024], as :mod:`mobillama_v.backends.native.tiles`
    says.

    Raises:
        CheckpointError: numbers that are not finite, or beyond what 16 bits hold.
    """
    check_fp16_range(weight, name)
    rows, columns = weight.shape
    panels, blocks, _ = tiles_shape(rows, columns, 16)
    padded = np.zeros((panels * ROWS, blocks * BLOCK), np.float16)
    padded[:rows, :columns] = weight
    tiles = padded.reshape(panels, ROWS, blocks, BLOCK).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(tiles).view(np.uint8).reshape(panels, blocks, -1)


def unpack_matrix(tiles: Array, bits: int, rows: int, columns: int) -> Array:
    """The matrix [rows, columns] that tiles [A,B,bytes] mean, fp32."""
    panels, blocks, _ = tiles.shape
    if bits == 16:
        values = tiles.view(np.float16).reshape(panels, blocks, BLOCK, ROWS).swapaxes(2, 3)
    else:
        scales = np.ascontiguousarray(tiles[..., : 2 * ROWS]).view(np.float16).astype(np.float32)  # [A,B,16]
        data = tiles[..., 2 * ROWS :]
        if bits == 4:
            data = data.reshape(panels, blocks, 2, 4, 8, 4).swapaxes(3, 4)  # [A,B,2,8,4,4]
            codes = np.stack((data & 15, data >> 4), axis=-2).view(np.int8) - np.int8(8)
        else:
            codes = data.view(np.int8).reshape(panels, blocks, 2, 8, 8, 4).swapaxes(3, 4)
        values = codes.reshape(panels, blocks, ROWS, BLOCK) * scales[..., None]
    whole = values.swapaxes(1, 2).reshape(panels * ROWS, blocks * BLOCK)
    return np.ascontiguousarray(whole[:rows, :columns], np.float32)


def pack_decoder(get: GetTensor, spec: DecoderConfig, bits: int, pack: Callable[[Array, str], Array]) -> Packed:
    """Pack the decoder whose tensors ``get`` returns; ``pack(matrix, name)`` makes tiles of a matrix.

    Raises:
        CheckpointError: weights that are not finite, and whatever ``pack`` raises.
    """
    tensors: dict[str, Array] = {}
    for name, (dtype, shape) in layout(spec, bits).items():
        if dtype == np.uint8:
            tensors[name] = pack(_matrix(get, name, spec), name)
        else:
            parts = joined(name, spec)
            if parts:
                tensor = np.concatenate([get(each, count) for each, count in parts.items()]).reshape(shape)
            else:
                tensor = get(decoder_name(name), *shape)
            check_fp16_range(tensor, name)
            tensors[name] = np.ascontiguousarray(tensor, dtype)
    return Packed(spec, bits, tensors)


def decoder_name(name: str) -> str:
    """The name in the decoder of a tensor that is not packed."""
    name = name.replace(".attention_norm", ".input_layernorm").replace(".ffn_norm", ".post_attention_layernorm")
    return f"{name}.weight"


def ffn_name(layer: str, spec: DecoderConfig) -> str:
    """The name in the decoder of a layer's feed-forward network."""
    return "feed_forward" if spec.ffn_sharing == "all" else f"layers.{layer}.mlp"


def qkv_rows(layer: str, spec: DecoderConfig) -> dict[str, int]:
    """The projections to queries, keys and values of a layer, by their names in the decoder, and their rows."""
    counts = zip("qkv", (spec.query_width, spec.key_width, spec.key_width), strict=True)
    return {f"layers.{layer}.self_attn.{each}_proj": count for each, count in counts}


def joined(name: str, spec: DecoderConfig) -> dict[str, int]:
    """What a vector of several is made of, by names in the decoder, and their lengths; empty for all others."""
    if name.endswith(".qkv_bias"):
        return {f"{each}.bias": count for each, count in qkv_rows(name.split(".")[1], spec).items()}
    if name.endswith(".qk_norm"):
        return {f"layers.{name.split('.')[1]}.self_attn.{each}_norm.weight": spec.head_dim for each in "qk"}
    return {}


def _matrix(get: GetTensor, name: str, spec: DecoderConfig) -> Array:
    width, hidden = spec.hidden_size, spec.intermediate_size
    if name == "lm_head":
        return get(HEAD, spec.vocab_size, width)
    owner, index, part = name.split(".")
    if owner == "layers":
        if part == "out":
            return get(f"layers.{index}.self_attn.o_proj.weight", width, spec.query_width)
        rows = qkv_rows(index, spec).items()
        return np.concatenate([get(f"{each}.weight", count, width) for each, count in rows])
    network, extra = ffn_name(index, spec), ffn_rows(spec) - hidden
    if part == "down":
        return np.pad(get(f"{network}.down_proj.weight", width, hidden), ((0, 0), (0, extra)))
    gate, up = (
        np.pad(get(f"{network}.{each}_proj.weight", hidden, width), ((0, extra), (0, 0))).reshape(-1, ROWS, width)
        for each in ("gate", "up")
    )
    return np.stack((gate, up), axis=1).reshape(-1, width)

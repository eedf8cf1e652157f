"""A torch decoder to a packed one, and back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mobillama_v.backends.native.pack import HEAD, decoder_name, ffn_name, joined, pack_decoder, qkv_rows
from mobillama_v.backends.native.packed_format import ROWS, Array, Packed, matrices
from mobillama_v.backends.native.tiles import pack_matrix, unpack_matrix
from mobillama_v.config import DecoderConfig


def pack(
    decoder: nn.Module,
    lm_head: nn.Module,
    spec: DecoderConfig,
    bits: int,
    *,
    search: bool = True,
    moments: Mapping[str, Tensor] | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Packed:
    """Pack a :class:`~mobillama_v.model.decoder.Decoder` and its head.

    Args:
        decoder: its weights stay.
        lm_head: its head.
        spec: of the decoder.
        bits: 4, 8 or 16.
        search: as in :func:`pack_matrix`.
        moments: of the inputs of matrices, by their names (:mod:`mobillama_v.backends.native.calibration`).
        progress: is called with what is done, how many matrices are packed, and of how many.

    Raises:
        CheckpointError: weights that are not finite.
    """
    state = {name: tensor.detach() for name, tensor in decoder.state_dict().items()}
    state[HEAD] = lm_head.state_dict()["weight"].detach()

    done, count = itertools.count(1), len(matrices(spec))

    def get(name: str, *_: int) -> Array:
        tensor = state[name]
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy has no bfloat16

    def tiles(weight: Array, name: str) -> Array:
        known = None if moments is None else moments.get(name)
        made = pack_matrix(torch.from_numpy(weight), bits, search=search, moments=known, name=name).numpy()
        progress("packing", next(done), count)
        return made

    return pack_decoder(get, spec, bits, tiles)


def unpack(packed: Packed) -> tuple[dict[str, Tensor], Tensor]:
    """State of a :class:`~mobillama_v.model.decoder.Decoder`, and its head's weight, from packed numbers; fp32."""
    spec = packed.spec
    state: dict[str, Tensor] = {}
    head = torch.empty(0)
    for name, array in packed.tensors.items():
        tensor = torch.from_numpy(array)
        if parts := joined(name, spec):
            pieces = zip(parts, tensor.flatten().split(tuple(parts.values())), strict=True)
            state |= {each: piece.contiguous() for each, piece in pieces}
            continue
        if tensor.dtype != torch.uint8:
            state[decoder_name(name)] = tensor.float()
            continue
        weight = unpack_matrix(tensor, packed.bits, *matrices(spec)[name])
        if name == "lm_head":
            head = weight
            continue
        _, index, part = name.split(".")
        network = ffn_name(index, spec)
        if part == "out":
            state[f"layers.{index}.self_attn.o_proj.weight"] = weight
        elif part == "qkv":
            rows = qkv_rows(index, spec)
            for each, piece in zip(rows, weight.split(tuple(rows.values())), strict=True):
                state[f"{each}.weight"] = piece.contiguous()
        elif part == "down":
            state[f"{network}.down_proj.weight"] = weight[:, : spec.intermediate_size].contiguous()
        else:
            panels = weight.view(-1, 2, ROWS, spec.hidden_size)
            for i, each in enumerate(("gate", "up")):
                whole = panels[:, i].reshape(-1, spec.hidden_size)
                state[f"{network}.{each}_proj.weight"] = whole[: spec.intermediate_size].contiguous()
    return state, head

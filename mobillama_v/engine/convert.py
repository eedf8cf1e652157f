"""A torch decoder to a packed one, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mobillama_v.engine.files import ROWS, Packed, ffn_rows, layout, matrices
from mobillama_v.engine.pack import pack_matrix, refuse_odd, unpack_matrix
from mobillama_v.specs import DecoderSpec


def pack(
    decoder: nn.Module,
    lm_head: nn.Module,
    spec: DecoderSpec,
    bits: int,
    *,
    search: bool = True,
    moments: Mapping[str, Tensor] | None = None,
) -> Packed:
    """Pack a :class:`~mobillama_v.decoder.Decoder` and its head.

    Args:
        decoder: its weights stay.
        lm_head: its head.
        spec: of the decoder.
        bits: 4, 8 or 16.
        search: as in :func:`pack_matrix`.
        moments: of the inputs of matrices, by their names (:mod:`mobillama_v.engine.calibrate`).

    Raises:
        CheckpointError: weights that are not finite.
    """
    state = {name: tensor.detach() for name, tensor in decoder.state_dict().items()}
    head = lm_head.state_dict()["weight"].detach()
    refuse_odd(state["embed_tokens.weight"], "embed_tokens")
    tensors: dict[str, np.ndarray] = {}
    for name, (dtype, _) in layout(spec, bits).items():
        if dtype == np.uint8:
            weight = head if name == "lm_head" else _matrix(state, name, spec)
            known = None if moments is None else moments.get(name)
            tensor = pack_matrix(weight, bits, search=search, moments=known, name=name)
        else:
            tensor = state[_original(name)].to(getattr(torch, dtype.name)).contiguous()
        tensors[name] = tensor.numpy()
    return Packed(spec, bits, tensors)


def _original(name: str) -> str:
    name = name.replace(".attention_norm", ".input_layernorm").replace(".ffn_norm", ".post_attention_layernorm")
    return f"{name}.weight"


def _matrix(state: dict[str, Tensor], name: str, spec: DecoderSpec) -> Tensor:
    owner, index, part = name.split(".")
    if owner == "layers":
        attention = f"layers.{index}.self_attn"
        if part == "out":
            return state[f"{attention}.o_proj.weight"]
        return torch.cat([state[f"{attention}.{each}_proj.weight"] for each in "qkv"])
    network = "feed_forward" if spec.ffn_sharing == "all" else f"layers.{index}.mlp"
    extra = ffn_rows(spec) - spec.intermediate_size
    if part == "down":
        return nn.functional.pad(state[f"{network}.down_proj.weight"], (0, extra))
    gate, up = (
        nn.functional.pad(state[f"{network}.{each}_proj.weight"], (0, 0, 0, extra)).view(-1, ROWS, spec.hidden_size)
        for each in ("gate", "up")
    )
    return torch.stack((gate, up), dim=1).flatten(0, 2)


def unpack(packed: Packed) -> tuple[dict[str, Tensor], Tensor]:
    """State of a :class:`~mobillama_v.decoder.Decoder`, and its head's weight, as packed numbers mean them; fp32."""
    spec = packed.spec
    state: dict[str, Tensor] = {}
    head = torch.empty(0)
    for name, array in packed.tensors.items():
        tensor = torch.from_numpy(array)
        if tensor.dtype != torch.uint8:
            state[_original(name)] = tensor.float()
            continue
        weight = unpack_matrix(tensor, packed.bits, *matrices(spec)[name])
        if name == "lm_head":
            head = weight
            continue
        _, index, part = name.split(".")
        attention = f"layers.{index}.self_attn"
        network = "feed_forward" if spec.ffn_sharing == "all" else f"layers.{index}.mlp"
        if part == "out":
            state[f"{attention}.o_proj.weight"] = weight
        elif part == "qkv":
            keys = spec.num_key_value_heads * spec.head_dim
            for each, piece in zip("qkv", weight.split((spec.hidden_size, keys, keys)), strict=True):
                state[f"{attention}.{each}_proj.weight"] = piece.contiguous()
        elif part == "down":
            state[f"{network}.down_proj.weight"] = weight[:, : spec.intermediate_size].contiguous()
        else:
            bands = weight.view(-1, 2, ROWS, spec.hidden_size)
            for i, each in enumerate(("gate", "up")):
                whole = bands[:, i].reshape(-1, spec.hidden_size)
                state[f"{network}.{each}_proj.weight"] = whole[: spec.intermediate_size].contiguous()
    return state, head

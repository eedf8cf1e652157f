"""A packed decoder, and the file that holds it.

``packed.safetensors`` lies in a model folder in place of the decoder's own weights; ``model.safetensors`` beside it
keeps those of the tower and the projector (:mod:`mobillama_v.engine.sight`). Its metadata are ``format``
(``mobillama_v.packed``), ``version`` (``1``) and ``bits``. Its tensors, for a decoder of V tokens, width D, F hidden
units and L layers:

| name | type | content |
| --- | --- | --- |
| ``embed_tokens`` | fp16 | [V,D] |
| ``lm_head`` | packed | [V,D] |
| ``norm`` | fp32 | [D] |
| ``feed_forward.I.gate_up`` | packed | gate and up, [F,D] each, padded to F' (a multiple of 32), by turns of 16 rows |
| ``feed_forward.I.down`` | packed | [D,F'] |
| ``layers.I.qkv`` | packed | queries, keys and values one below another |
| ``layers.I.out`` | packed | [D,D] |
| ``layers.I.attention_norm``, ``layers.I.ffn_norm`` | fp32 | [D] |

There is one ``feed_forward.0`` where all layers share it. "Packed" is as :mod:`mobillama_v.engine.pack` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mobillama_v.checkpoint import refuse_misfits, weight_files
from mobillama_v.engine.pack import BLOCK, ROWS, pack_matrix, refuse_odd, tiles_shape, unpack_matrix
from mobillama_v.errors import CheckpointError
from mobillama_v.specs import DecoderSpec

FILE = "packed.safetensors"
BITS = (4, 8, 16)
_FORMAT, _VERSION = "mobillama_v.packed", "1"


@dataclass(frozen=True)
class Packed:
    """A packed decoder: bits of its matrices, and its tensors by name in the engine's order."""

    spec: DecoderSpec
    bits: int
    tensors: dict[str, Tensor]


def _ffn_rows(spec: DecoderSpec) -> int:
    return -(-spec.intermediate_size // BLOCK) * BLOCK


def ffn_count(spec: DecoderSpec) -> int:
    """Feed-forward networks of a decoder."""
    return 1 if spec.ffn_sharing == "all" else spec.num_hidden_layers


def matrices(spec: DecoderSpec) -> dict[str, tuple[int, int]]:
    """Rows and columns of every packed matrix."""
    width, ffn = spec.hidden_size, _ffn_rows(spec)
    found = {"lm_head": (spec.vocab_size, width)}
    for i in range(ffn_count(spec)):
        found |= {f"feed_forward.{i}.gate_up": (2 * ffn, width), f"feed_forward.{i}.down": (width, ffn)}
    for i in range(spec.num_hidden_layers):
        keys = spec.num_key_value_heads * spec.head_dim
        found |= {f"layers.{i}.qkv": (width + 2 * keys, width), f"layers.{i}.out": (width, width)}
    return found


def layout(spec: DecoderSpec, bits: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of every tensor of a packed decoder, in the engine's order."""
    width = (spec.hidden_size,)
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "embed_tokens": (torch.float16, (spec.vocab_size, spec.hidden_size))
    }
    for name, (rows, columns) in matrices(spec).items():
        found[name] = (torch.uint8, tiles_shape(rows, columns, bits))
        if name == "lm_head":
            found["norm"] = (torch.float32, width)
        elif name.endswith(".out"):
            layer = name.removesuffix(".out")
            found |= {f"{layer}.attention_norm": (torch.float32, width), f"{layer}.ffn_norm": (torch.float32, width)}
    return found


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
    tensors: dict[str, Tensor] = {}
    for name, (dtype, _) in layout(spec, bits).items():
        if dtype == torch.uint8:
            weight = head if name == "lm_head" else _matrix(state, name, spec)
            known = None if moments is None else moments.get(name)
            tensors[name] = pack_matrix(weight, bits, search=search, moments=known, name=name)
        else:
            tensors[name] = state[_original(name)].to(dtype).contiguous()
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
    extra = _ffn_rows(spec) - spec.intermediate_size
    if part == "down":
        return nn.functional.pad(state[f"{network}.down_proj.weight"], (0, extra))
    gate, up = (
        nn.functional.pad(state[f"{network}.{each}_proj.weight"], (0, 0, 0, extra)).view(-1, ROWS, spec.hidden_size)
        for each in ("gate", "up")
    )
    return torch.stack((gate, up), dim=1).flatten(0, 2)


def unpack(packed: Packed) -> tuple[dict[str, Tensor], Tensor]:
    """State of a :class:`~mobillama_v.decoder.Decoder`, and its head's weight, as packed numbers mean them; fp32."""
    spec, tensors = packed.spec, packed.tensors
    state: dict[str, Tensor] = {}
    head = torch.empty(0)
    for name, tensor in tensors.items():
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


def is_packed(folder: Path) -> bool:
    """Whether a model folder holds a packed decoder."""
    return (folder / FILE).is_file()


def weight_files_of(folder: Path) -> list[Path]:
    """All files that hold weights, the packed decoder's among them.

    Raises:
        CheckpointError: as :func:`mobillama_v.checkpoint.weight_files`.
    """
    return [*weight_files(folder), *([folder / FILE] if is_packed(folder) else [])]


def write(packed: Packed, folder: Path) -> None:
    """Write ``packed.safetensors``."""
    from safetensors.torch import save_file

    metadata = {"format": _FORMAT, "version": _VERSION, "bits": str(packed.bits)}
    save_file(packed.tensors, folder / FILE, metadata=metadata)


def read(folder: Path, spec: DecoderSpec) -> Packed:
    """Map ``packed.safetensors`` of ``folder`` into memory; pages are read from the disk when they are first used.

    Raises:
        CheckpointError: a damaged or truncated file, another format, or tensors that do not fit ``spec``, named.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT or metadata.get("version") != _VERSION:
                raise CheckpointError(
                    f"{path} is not a packed model that this version reads; make it anew with `mobillama-v quantize`."
                )
            bits = next((each for each in BITS if metadata.get("bits") == str(each)), 0)
            if not bits:
                raise CheckpointError(f"{path} does not say that its weights have 4, 8 or 16 bits; make it anew.")
            names = set(file.keys())
            expected = layout(spec, bits)
            wrong = []
            for name in expected.keys() & names:
                piece = file.get_slice(name)
                shape, dtype = tuple(piece.get_shape()), _DTYPES.get(piece.get_dtype())
                if (dtype, shape) != expected[name]:
                    wrong.append(f"{name} is {piece.get_dtype()} {list(shape)} and must be {_show(*expected[name])}")
            refuse_misfits(
                path,
                missing=[name for name in expected if name not in names],
                extra=sorted(names - expected.keys()),
                wrong=sorted(wrong),
            )
            tensors = {name: _aligned(file.get_tensor(name)) for name in expected}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again.") from error
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32 and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path} is damaged ({name} holds numbers that are not finite); copy it again.")
    return Packed(spec, bits, tensors)


_DTYPES = {"F16": torch.float16, "F32": torch.float32, "U8": torch.uint8}


def _show(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    names = {torch_type: name for name, torch_type in _DTYPES.items()}
    return f"{names[dtype]} {list(shape)}"


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy where a file has put it at an odd place."""
    return tensor if tensor.data_ptr() % 4 == 0 else tensor.clone()

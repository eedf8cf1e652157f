"""A packed decoder, and the file that holds it.

``packed.safetensors`` lies in a model folder in place of the decoder's own weights; ``model.safetensors`` beside it
keeps those of the tower and the projector (:mod:`mobillama_v.backends.native.packed_vision`). Its metadata are
``format`` (``mobillama_v.packed``), ``version`` (``1``) and ``bits``. Its tensors, for a decoder of V tokens, width
D, F hidden units, L layers, and heads of width C, together Q:

| name | type | content |
| --- | --- | --- |
| ``embed_tokens`` | fp16 | [V,D] |
| ``lm_head`` | packed | [V,D] |
| ``norm`` | fp32 | [D] |
| ``feed_forward.I.gate_up`` | packed | gate and up, [F,D] each, padded to F' (a multiple of 32), by turns of 16 rows |
| ``feed_forward.I.down`` | packed | [D,F'] |
| ``layers.I.qkv`` | packed | queries, keys and values one below another |
| ``layers.I.qkv_bias`` | fp32 | their biases, where the decoder has them |
| ``layers.I.qk_norm`` | fp32 | [2,C], the norms of each head's queries and keys, where the decoder has them |
| ``layers.I.out`` | packed | [D,Q] |
| ``layers.I.attention_norm``, ``layers.I.ffn_norm`` | fp32 | [D] |

There is one ``feed_forward.0`` where all layers share it. "Packed" is as :mod:`mobillama_v.backends.native.tiles` says.

Nothing here imports torch: what reads a packed model and runs it need not have torch in its memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mobillama_v.checkpoint import refuse_misfits, weight_files
from mobillama_v.config import DecoderConfig
from mobillama_v.errors import CheckpointError
from mobillama_v.fields import parse_json

if TYPE_CHECKING:
    from safetensors import safe_open

FILE = "packed.safetensors"
BITS = (4, 8, 16)
ROWS, BLOCK = 16, 32
"""Of a tile."""
TILE_BYTES = {4: 288, 8: 544, 16: 1024}
Array: TypeAlias = "np.ndarray[Any, Any]"
Layout: TypeAlias = "dict[str, tuple[np.dtype[Any], tuple[int, ...]]]"
"""Types and shapes by name."""
_LARGE = 1 << 24  # bytes of a table whose rows are not worth their memory; to let go of one takes some 30 microseconds
_ROWS_AT_ONCE = 8  # around each of which up to 2 MB of the file may get into memory
_EXPONENT = np.uint16(0x7C00)  # the bits of an fp16 number that is not finite
_AT_ONCE = 1 << 18  # numbers that are looked at together: no more than a cache holds
_FORMAT, _VERSION = "mobillama_v.packed", "1"
_DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype(np.float16), "F32": np.dtype(np.float32), "U8": np.dtype(np.uint8)}


@dataclass(frozen=True)
class Packed:
    """A packed decoder: bits of its matrices, and its tensors by name in the engine's order.

    ``mapping`` is the file in which they lie, None where they are ordinary memory. Nobody writes to them.
    """

    spec: DecoderConfig
    bits: int
    tensors: dict[str, Array]
    mapping: mmap.mmap | None = None

    def embed(self, ids: Array) -> Array:
        """Embeddings [...,D] of ids, fp32.

        Raises:
            IndexError: an id that is not in the vocabulary.
        """
        if ids.size and ids.min() < 0:  # which would count from the end
            raise IndexError(f"token {ids.min()} is not in a vocabulary of {self.spec.vocab_size}")
        flat = ids.reshape(-1)
        rows = np.empty((len(flat), self.spec.hidden_size), np.float32)
        for i in range(0, len(flat), _ROWS_AT_ONCE):
            some = slice(i, i + _ROWS_AT_ONCE)
            rows[some] = self.tensors["embed_tokens"][flat[some]]
            self.leave_table()
        return rows.reshape(*ids.shape, self.spec.hidden_size)

    def leave_table(self) -> None:
        """Release the memory of the embeddings, of which some have been read and few others will be."""
        if self.tensors["embed_tokens"].nbytes >= _LARGE:
            self.release_pages("embed_tokens")

    def release_pages(self, name: str) -> None:
        """Release the memory of a tensor that lies in a file; it is read from there again when it is used."""
        if self.mapping is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        tensor = self.tensors[name]
        start = _address(tensor) - _address(np.frombuffer(self.mapping, np.uint8))
        if not 0 <= start < len(self.mapping):  # it was copied
            return
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (start + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            self.mapping.madvise(mmap.MADV_DONTNEED, first, length)


def _address(array: Array) -> int:
    return array.__array_interface__["data"][0]


def tiles_shape(rows: int, columns: int, bits: int) -> tuple[int, int, int]:
    """Shape of a packed matrix [rows, columns]."""
    return -(-rows // ROWS), -(-columns // BLOCK), TILE_BYTES[bits]


def ffn_rows(spec: DecoderConfig) -> int:
    """Hidden units of a feed-forward network, padded to whole blocks."""
    return -(-spec.intermediate_size // BLOCK) * BLOCK


def ffn_count(spec: DecoderConfig) -> int:
    """Feed-forward networks of a decoder."""
    return 1 if spec.ffn_sharing == "all" else spec.num_hidden_layers


def matrices(spec: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of every packed matrix."""
    width, ffn = spec.hidden_size, ffn_rows(spec)
    found = {"lm_head": (spec.vocab_size, width)}
    for i in range(ffn_count(spec)):
        found |= {f"feed_forward.{i}.gate_up": (2 * ffn, width), f"feed_forward.{i}.down": (width, ffn)}
    for i in range(spec.num_hidden_layers):
        rows = spec.query_width + 2 * spec.key_width
        found |= {f"layers.{i}.qkv": (rows, width), f"layers.{i}.out": (width, spec.query_width)}
    return found


def layout(spec: DecoderConfig, bits: int) -> Layout:
    """Type and shape of every tensor of a packed decoder, in the engine's order."""
    half, single, byte = _DTYPES.values()
    width = (spec.hidden_size,)
    found: Layout = {"embed_tokens": (half, (spec.vocab_size, spec.hidden_size))}
    for name, (rows, columns) in matrices(spec).items():
        found[name] = (byte, tiles_shape(rows, columns, bits))
        if name == "lm_head":
            found["norm"] = (single, width)
        elif name.endswith(".qkv"):
            if spec.qkv_bias:
                found[f"{name}_bias"] = (single, (rows,))
            if spec.qk_norm:
                found[f"{name.removesuffix('v')}_norm"] = (single, (2, spec.head_dim))
        elif name.endswith(".out"):
            layer = name.removesuffix(".out")
            found |= {f"{layer}.attention_norm": (single, width), f"{layer}.ffn_norm": (single, width)}
    return found


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
    from safetensors.numpy import save_file

    metadata = {"format": _FORMAT, "version": _VERSION, "bits": str(packed.bits)}
    save_file(packed.tensors, folder / FILE, metadata=metadata)


def read(folder: Path, spec: DecoderConfig) -> Packed:
    """Map ``packed.safetensors`` of ``folder`` into memory; pages are read from the disk when they are first used.

    Raises:
        CheckpointError: a damaged or truncated file, another format, or tensors that do not fit ``spec``, named.
    """
    from safetensors import safe_open

    path = folder / FILE
    with _refusing_damage(path):
        with safe_open(path, framework="np") as file:  # which checks that the tensors lie in it, one after another
            bits = _bits(file, path)
            expected = layout(spec, bits)
            _refuse_others(file, path, expected)
        mapping, found = mapped(path)
        tensors = {name: found[name] for name in expected}
    packed = Packed(spec, bits, tensors, mapping)
    for name, tensor in tensors.items():
        if not holds_numbers(tensor, bits):
            raise CheckpointError(f"{path} is damaged ({name} holds numbers that are not finite); copy it again.")
        packed.release_pages(name)
    return packed


def read_bits(folder: Path) -> int:
    """Bits of the matrices in ``packed.safetensors`` of ``folder``, by its header alone.

    Raises:
        CheckpointError: a damaged file, or another format.
    """
    from safetensors import safe_open

    path = folder / FILE
    with _refusing_damage(path), safe_open(path, framework="np") as file:
        return _bits(file, path)


@contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again.") from error


def holds_numbers(tensor: Array, bits: int) -> bool:
    """Whether the numbers of a tensor, or the scales of a matrix [A,B,bytes] packed to ``bits``, are finite."""
    if tensor.dtype == np.float32:
        return bool(np.isfinite(tensor).all())
    if tensor.dtype == np.uint8 and bits != 16:
        tensor = tensor[..., : 2 * ROWS]
    halves = tensor.view(np.uint16)
    halves = halves.reshape(-1, halves.shape[-1])
    step = max(1, _AT_ONCE // halves.shape[1])
    pieces = (halves[i : i + step] & _EXPONENT for i in range(0, len(halves), step))
    return all(int(piece.max()) != _EXPONENT for piece in pieces)


def _bits(file: safe_open, path: Path) -> int:
    """Of a file whose format is ours."""
    metadata = file.metadata() or {}
    if metadata.get("format") != _FORMAT or metadata.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} is not a packed model that this version reads; make it anew with `mobillama-v quantize`."
        )
    bits = next((each for each in BITS if metadata.get("bits") == str(each)), 0)
    if not bits:
        raise CheckpointError(f"{path} does not say that its weights have 4, 8 or 16 bits; make it anew.")
    return bits


def _refuse_others(file: safe_open, path: Path, expected: Layout) -> None:
    """See that a file holds the tensors that are expected, and no others."""
    names = set(file.keys())
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


def _show(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    names = {numpy_type: name for name, numpy_type in _DTYPES.items()}
    return f"{names[dtype]} {list(shape)}"


def mapped(path: Path) -> tuple[mmap.mmap, dict[str, Array]]:
    """A file that has been checked, and its tensors where they lie in it; those at odd places are copied.

    Those in bfloat16, which numpy lacks, become fp32.

    Raises:
        ValueError, KeyError: it is another file by now, or holds a type that numpy lacks.
    """
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch warns of what cannot be written to
    start = 8 + int.from_bytes(mapping[:8], "little")
    header = parse_json(mapping[8:start])
    whole = np.frombuffer(mapping, np.uint8)[start:]
    tensors = {}
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] == "BF16":
            upper = whole[begin:end].view(np.uint16).astype(np.uint32) << 16
            tensors[name] = upper.view(np.float32).reshape(entry["shape"])
            continue
        tensor = whole[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        # Tiles are read four bytes at a time, and floats one by one.
        step = tensor.itemsize if tensor.dtype.kind == "f" else 4
        tensors[name] = tensor if _address(tensor) % step == 0 else tensor.copy()
    return mapping, tensors

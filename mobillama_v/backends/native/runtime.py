"""The packed decoder and its conversations in the native library, over numpy; nothing here imports torch.

Shapes: B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence as Several

import numpy as np

from mobillama_v.backends.native import library
from mobillama_v.backends.native.packed_format import ROWS, Array, Packed, ffn_count, layout
from mobillama_v.config import DecoderConfig


def supports(spec: DecoderConfig, device: str) -> str:
    """Why a decoder cannot run here; empty where it can."""
    if device != "cpu":
        return f"it runs on a CPU and the device is {device}; choose --device cpu"
    if spec.head_dim % 8:
        return f"its kernels want heads whose width is a multiple of 8, and this model's are {spec.head_dim} wide"
    return library.missing()


class NativeModel:
    """A packed decoder in the native library. Calls from several threads take turns."""

    def __init__(self, packed: Packed, *, threads: int, path: str | None = None) -> None:
        """Hand ``packed`` to the library.

        Args:
            packed: its tensors stay as long as this object lives; of those in a file, what is read takes memory.
            threads: the calling one included.
            path: kernel path, one of :func:`mobillama_v.backends.native.library.paths`; None means the fastest.

        Raises:
            RuntimeError: there is no library, or it refuses the model.
        """
        spec = packed.spec
        lib = library.library()
        frequencies = spec.rotary_frequencies()  # the library makes its tables of them at once
        tensors = [*(packed.tensors[name] for name in layout(spec, packed.bits)), frequencies]
        spans = (library.Span * len(tensors))(*(library.Span(each.ctypes.data, each.nbytes) for each in tensors))
        config = library.Config(
            eps=spec.rms_norm_eps,
            vocab=spec.vocab_size,
            hidden=spec.hidden_size,
            ffn=spec.intermediate_size,
            layers=spec.num_hidden_layers,
            heads=spec.num_attention_heads,
            kv_heads=spec.num_key_value_heads,
            context=spec.max_position_embeddings,
            ffn_count=ffn_count(spec),
            head_width=spec.head_dim,
            qkv_bias=spec.qkv_bias,
            qk_norm=spec.qk_norm,
            bits=packed.bits,
            threads=threads,
            path=library.encoded(path),
        )
        self.spec, self.bits, self.threads = spec, packed.bits, threads
        self._packed = packed  # the library reads its tensors where they are
        self.handle = lib.mv_model_new(ctypes.byref(config), spans, len(tensors))
        if not self.handle:
            raise RuntimeError(f"the native engine refuses this model: {library.error()}")
        self._free = weakref.finalize(self, lib.mv_model_free, self.handle)
        for name in packed.tensors:  # it has copied some of them; the others come back as they are needed
            packed.release_pages(name)
        self.path: str = lib.mv_model_path(self.handle).decode()

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes of weights that decoding a token reads: once, and from the cache."""
        streamed, cached = ctypes.c_uint64(), ctypes.c_uint64()
        library.library().mv_model_traffic(self.handle, ctypes.byref(streamed), ctypes.byref(cached))
        return streamed.value, cached.value

    def embed(self, ids: Array) -> Array:
        """:meth:`Packed.embed`."""
        return self._packed.embed(ids)

    def forward(self, sequences: Several[NativeSequence], inputs: Several[Array]) -> Array:
        """Append to sequences, each once; logits [B,V] after the last position of each.

        Args:
            sequences: B of this model.
            inputs: for each, embeddings [T,D], or for each, token ids [T]; a prompt's cost less memory if :meth:`embed`
                takes them.

        Raises:
            RuntimeError: a sequence has no room, or a token is not in the vocabulary.
        """
        joined = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
        embeddings = joined.ndim == 2
        joined = np.ascontiguousarray(joined, np.float32 if embeddings else np.int32)
        if embeddings and joined.shape[1] != self.spec.hidden_size:
            raise ValueError(f"embeddings are {joined.shape[1]} wide and the model {self.spec.hidden_size}")
        count = len(sequences)
        handles = (ctypes.c_void_p * count)(*(each.handle for each in sequences))
        counts = (ctypes.c_int32 * count)(*map(len, inputs))
        logits = np.empty((count, -(-self.spec.vocab_size // ROWS) * ROWS), np.float32)
        pointer = joined.ctypes.data
        where = (pointer, None) if embeddings else (None, pointer)
        if library.library().mv_forward(self.handle, handles, counts, count, *where, logits.ctypes.data):
            raise RuntimeError(f"the native engine: {library.error()}")
        if not embeddings:
            self._packed.leave_table()
        return logits[:, : self.spec.vocab_size]


class NativeSequence:
    """Keys and values of one conversation."""

    def __init__(self, model: NativeModel, capacity: int) -> None:
        """Take room for ``capacity`` positions.

        Raises:
            RuntimeError: more than the context, or than there is memory.
        """
        self.model = model  # must outlive this
        lib = library.library()
        self.handle = lib.mv_sequence_new(model.handle, capacity)
        if not self.handle:
            raise RuntimeError(f"the native engine: {library.error()}")
        self._free = weakref.finalize(self, lib.mv_sequence_free, self.handle)

    def copy(self, source: NativeSequence, length: int) -> None:
        """Take over the first ``length`` positions of another sequence of the model; this one must be empty.

        Raises:
            RuntimeError: it is not, or they are not there, or there is no room for them.
        """
        if library.library().mv_sequence_copy(self.handle, source.handle, length):
            raise RuntimeError(f"the native engine: {library.error()}")

"""The native decoder behind the interface of generation.

Shapes: B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence as Several

import torch
from torch import Tensor

from mobillama_v.engine import library
from mobillama_v.engine.files import Packed, ffn_count, layout
from mobillama_v.engine.pack import ROWS
from mobillama_v.generation import Engine


class NativeModel:
    """A packed decoder in the native library. Calls from several threads take turns."""

    def __init__(self, packed: Packed, *, threads: int, path: str = "auto") -> None:
        """Hand ``packed`` to the library.

        Args:
            packed: its tensors stay mapped as long as this object lives.
            threads: the calling one included.
            path: kernel path, one of :data:`mobillama_v.engine.library.PATHS`.

        Raises:
            RuntimeError: there is no library, or it refuses the model.
        """
        spec = packed.spec
        lib = library.library()
        tensors = [packed.tensors[name] for name in layout(spec, packed.bits)]
        spans = (library.Span * len(tensors))(*(library.Span(each.data_ptr(), each.nbytes) for each in tensors))
        config = library.Config(
            theta=spec.rope_theta,
            eps=spec.rms_norm_eps,
            vocab=spec.vocab_size,
            hidden=spec.hidden_size,
            ffn=spec.intermediate_size,
            layers=spec.num_hidden_layers,
            heads=spec.num_attention_heads,
            kv_heads=spec.num_key_value_heads,
            context=spec.max_position_embeddings,
            ffn_count=ffn_count(spec),
            bits=packed.bits,
            threads=threads,
            path=library.PATHS[path],
        )
        self.spec, self.bits, self.threads = spec, packed.bits, threads
        self.embeddings = packed.tensors["embed_tokens"]
        self._tensors = tensors  # the library reads them where they are
        self.handle = lib.mv_model_new(ctypes.byref(config), spans, len(tensors))
        if not self.handle:
            raise RuntimeError(f"the native engine refuses this model: {library.error()}")
        self._free = weakref.finalize(self, lib.mv_model_free, self.handle)
        numbers = {number: name for name, number in library.PATHS.items()}
        self.path = numbers[lib.mv_model_path(self.handle)]

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes of weights that decoding a token reads: once, and from the cache."""
        streamed, cached = ctypes.c_uint64(), ctypes.c_uint64()
        library.library().mv_model_traffic(self.handle, ctypes.byref(streamed), ctypes.byref(cached))
        return streamed.value, cached.value

    def forward(self, sequences: Several[NativeSequence], inputs: Several[Tensor]) -> Tensor:
        """Append to sequences, each once; logits [B,V] after the last position of each.

        Args:
            sequences: B of this model.
            inputs: for each, embeddings [T,D], or for each, token ids [T].

        Raises:
            RuntimeError: a sequence has no room, or a token is not in the vocabulary.
        """
        joined = torch.cat(list(inputs))
        embeddings = joined.dim() == 2
        joined = joined.to(torch.float32 if embeddings else torch.int32).contiguous()
        if embeddings and joined.shape[1] != self.spec.hidden_size:
            raise ValueError(f"embeddings are {joined.shape[1]} wide and the model {self.spec.hidden_size}")
        count = len(sequences)
        handles = (ctypes.c_void_p * count)(*(each.handle for each in sequences))
        counts = (ctypes.c_int32 * count)(*map(len, inputs))
        logits = torch.empty(count, -(-self.spec.vocab_size // ROWS) * ROWS)
        pointer = joined.data_ptr()
        where = (pointer, None) if embeddings else (None, pointer)
        if library.library().mv_forward(self.handle, handles, counts, count, *where, logits.data_ptr()):
            raise RuntimeError(f"the native engine: {library.error()}")
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


class NativeEngine(Engine):
    """Generation by the native library."""

    def __init__(self, model: NativeModel) -> None:
        self.model, self.spec = model, model.spec
        self.title = f"native {model.bits} bit on cpu ({model.path})"

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [...,D] of ids, fp32."""
        return torch.nn.functional.embedding(ids, self.model.embeddings).float()

    def begin(self, rows: int, capacity: int) -> _Answering:
        """Room for ``rows`` sequences of ``capacity`` positions."""
        return _Answering(self.model, rows, capacity)


class _Answering:
    """A batch being answered. Padding is left out: every row has a sequence of its own length."""

    def __init__(self, model: NativeModel, rows: int, capacity: int) -> None:
        self._model = model
        self._sequences = [NativeSequence(model, capacity) for _ in range(rows)]

    def prefill(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        rows = [row[exists.bool()] for row, exists in zip(inputs_embeds, attention_mask, strict=True)]
        return self._model.forward(self._sequences, rows)

    def decode(self, tokens: Tensor) -> Tensor:
        return self._model.forward(self._sequences, list(tokens[:, None]))

"""The native decoder behind the interface of generation.

Shapes: B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence as Several

import torch
from torch import Tensor

from mobillama_v.engine import library
from mobillama_v.engine.files import Packed, ffn_count, layout
from mobillama_v.engine.pack import ROWS
from mobillama_v.engine.prefix import Kept, Prompt, parts
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

    def copy(self, source: NativeSequence, length: int) -> None:
        """Take over the first ``length`` positions of another sequence of the model; this one must be empty.

        Raises:
            RuntimeError: it is not, or they are not there, or there is no room for them.
        """
        if library.library().mv_sequence_copy(self.handle, source.handle, length):
            raise RuntimeError(f"the native engine: {library.error()}")


class NativeEngine(Engine):
    """Generation by the native library.

    Streams that are iterated in turns share their passes through the weights: the first that needs logits runs the next
    tokens of all that have said theirs, and the others find their logits there. A stream joins after its prompt and
    leaves at its end, without the others waiting.

    What prompts begin with in common is run once: those of a batch share it, and the last ``keep`` prompts stay with
    their keys and values for those to come, as the system's sentence and the picture of a chat do.

    Every output is summed in one order: a row's logits are bit for bit those that it would get alone.
    """

    def __init__(self, model: NativeModel, *, keep: int = 0) -> None:
        self.model, self.spec = model, model.spec
        self._ready: list[_Answering] = []
        self._lock = threading.RLock()  # a stream may be collected, and dropped, in the midst of a pass of this thread
        self.kept = Kept(keep)
        self.title = f"native {model.bits} bit on cpu ({model.path})"

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [...,D] of ids, fp32."""
        return torch.nn.functional.embedding(ids, self.model.embeddings).float()

    def begin(self, rows: int, capacity: int) -> _Answering:
        """Room for ``rows`` sequences of ``capacity`` positions."""
        return _Answering(self, rows, capacity)

    def add(self, batch: _Answering) -> None:
        """Its tokens run when the next logits are needed."""
        with self._lock:
            self._ready.append(batch)

    def drop(self, batch: _Answering) -> None:
        """Its tokens need not run."""
        with self._lock:
            if batch in self._ready:
                self._ready.remove(batch)

    def run(self, batch: _Answering) -> None:
        """Run the tokens of all that are ready, unless another thread has run this one's meanwhile.

        Raises:
            RuntimeError: as :meth:`NativeModel.forward`; then none has run.
        """
        with self._lock:
            if batch not in self._ready:
                return
            together = list(self._ready)
            tokens = torch.cat([one.tokens for one in together])
            found = self.model.forward([each for one in together for each in one.sequences], list(tokens[:, None]))
            for one, logits in zip(together, found.split([len(one.tokens) for one in together]), strict=True):
                one.found = logits
                self.drop(one)


class _Answering:
    """A batch being answered. Padding is left out: every row has a sequence of its own length."""

    def __init__(self, engine: NativeEngine, rows: int, capacity: int) -> None:
        self._engine = engine
        self.sequences = [NativeSequence(engine.model, capacity) for _ in range(rows)]
        self.tokens = self.found = torch.empty(0)

    def prefill(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        engine = self._engine
        rows = zip(inputs_embeds, attention_mask, self.sequences, strict=True)
        prompts = [Prompt(embeds[exists.bool()], sequence) for embeds, exists, sequence in rows]
        found = parts(prompts, engine.kept.all())
        logits = torch.empty(len(prompts), engine.spec.vocab_size)
        for turn in range(1 + max(part.turn for part in found)):
            some = [i for i, part in enumerate(found) if part.turn == turn]
            left = [found[i].begin() for i in some]
            logits[some] = engine.model.forward([self.sequences[i] for i in some], left)
        engine.kept.add(prompts)
        return logits

    def push(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self._engine.add(self)

    def logits(self) -> Tensor:
        self._engine.run(self)
        return self.found

    def close(self) -> None:
        self._engine.drop(self)

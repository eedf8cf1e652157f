"""A packed decoder over numpy in fp32, for machines that have neither the native library nor torch.

The steps are those of :class:`mobillama_v.model.decoder.Decoder`.

Shapes: B sequences, N new positions of all of them, T of one, S positions attended to, D hidden, H query heads, K
key/value heads, C head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mobillama_v.backends.native.engine import PackedEngine
from mobillama_v.backends.native.pack import unpack_matrix
from mobillama_v.backends.native.packed_format import ROWS, Array, Packed, ffn_count, matrices
from mobillama_v.backends.numpy.layers import NUMPY

_QUERIES = 256  # positions whose scores are in memory together


class NumpyModel:
    """A packed decoder, its matrices unpacked to fp32. Any thread may call it; sequences belong to one at a time."""

    def __init__(self, packed: Packed) -> None:
        self.spec, self.bits, self._packed = packed.spec, packed.bits, packed
        shapes = matrices(packed.spec)
        self._weights: dict[str, Array] = {}
        for name, tensor in packed.tensors.items():
            if name.endswith(".qk_norm"):  # a row for each head
                counts = packed.spec.num_attention_heads, packed.spec.num_key_value_heads
                self._weights[name] = np.repeat(tensor, counts, axis=0)
            elif name != "embed_tokens":
                self._weights[name] = unpack_matrix(tensor, self.bits, *shapes[name]).T if name in shapes else tensor
                packed.release_pages(name)

    def embed(self, ids: Array) -> Array:
        """:meth:`Packed.embed`."""
        return self._packed.embed(ids)

    def forward(self, sequences: Sequence[NumpySequence], inputs: Sequence[Array]) -> Array:
        """Append to sequences, each once; logits [B,V] after the last position of each.

        Args:
            sequences: B of this model.
            inputs: for each, embeddings [T,D], or for each, token ids [T].

        Raises:
            RuntimeError: a sequence has no room; then none has run.
            IndexError: a token is not in the vocabulary.
        """
        counts = list(map(len, inputs))
        for sequence, count in zip(sequences, counts, strict=True):
            sequence.check_room(sequence.length + count)
        joined = np.concatenate(inputs)
        x = self.embed(joined) if joined.ndim == 1 else joined.astype(np.float32)
        starts = [sequence.length for sequence in sequences]
        turns = self._rotary(np.concatenate([np.arange(at, at + n) for at, n in zip(starts, counts, strict=True)]))
        ends = np.cumsum(counts)
        for layer in range(self.spec.num_hidden_layers):
            qkv = self._linear(self._norm(x, f"layers.{layer}.attention_norm"), f"layers.{layer}.qkv")
            if self.spec.qkv_bias:
                qkv = qkv + self._weights[f"layers.{layer}.qkv_bias"]
            q, k, v = self._heads(qkv, turns, layer)
            attended = np.empty((len(x), self.spec.query_width), np.float32)
            for sequence, end, count in zip(sequences, ends, counts, strict=True):
                rows = slice(end - count, end)
                attended[rows] = sequence.attend(layer, q[rows], k[rows], v[rows])
            x = x + self._linear(attended, f"layers.{layer}.out")
            x = x + self._feed_forward(self._norm(x, f"layers.{layer}.ffn_norm"), layer)
        for sequence, count in zip(sequences, counts, strict=True):
            sequence.length += count
        return self._linear(self._norm(x[ends - 1], "norm"), "lm_head")

    def _linear(self, x: Array, name: str) -> Array:
        y: Array = x @ self._weights[name]
        return y

    def _norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(self.spec.rms_norm_eps))
        y: Array = x / scale * self._weights[name]
        return y

    def _feed_forward(self, x: Array, layer: int) -> Array:
        network = f"feed_forward.{layer if ffn_count(self.spec) > 1 else 0}"
        both = self._linear(x, f"{network}.gate_up").reshape(len(x), -1, 2, ROWS)
        gate, up = both[:, :, 0], both[:, :, 1]
        return self._linear((gate * NUMPY.sigmoid(gate) * up).reshape(len(x), -1), f"{network}.down")

    def _rotary(self, positions: Array) -> tuple[Array, Array]:
        """Cosines and sines [N,1,C] of the rotary embedding."""
        steps = self.spec.rotary_frequencies()
        angles = positions[:, None, None].astype(np.float32) * np.concatenate((steps, steps))
        return np.cos(angles), np.sin(angles)

    def _heads(self, qkv: Array, turns: tuple[Array, Array], layer: int) -> tuple[Array, Array, Array]:
        """Queries [N,H,C] and keys [N,K,C], rotated, and values [N,K,C]."""
        heads, keys = self.spec.num_attention_heads, self.spec.num_key_value_heads
        split = qkv.reshape(len(qkv), heads + 2 * keys, self.spec.head_dim)
        qk, (cos, sin) = split[:, : heads + keys], turns
        if self.spec.qk_norm:
            qk = self._norm(qk, f"layers.{layer}.qk_norm")
        first, second = np.split(qk, 2, axis=-1)  # the two halves are the pairs, as in Llama
        qk = qk * cos + np.concatenate((-second, first), axis=-1) * sin
        return qk[:, :heads], qk[:, heads:], split[:, heads + keys :]


class NumpySequence:
    """Keys and values of one conversation."""

    def __init__(self, model: NumpyModel, capacity: int) -> None:
        """Take room for ``capacity`` positions.

        Raises:
            RuntimeError: more than the context.
        """
        spec = model.spec
        if capacity > spec.max_position_embeddings:
            raise RuntimeError(f"a sequence of {capacity} positions is longer than the context")
        self.length, self.capacity = 0, capacity
        shape = spec.num_hidden_layers, spec.num_key_value_heads, capacity, spec.head_dim
        self._keys, self._values = np.empty(shape, np.float32), np.empty(shape, np.float32)

    def check_room(self, length: int) -> None:
        """See that it can be ``length`` long.

        Raises:
            RuntimeError: it cannot.
        """
        if length > self.capacity:
            raise RuntimeError(f"a sequence has room for {self.capacity} positions and needs {length}")

    def copy(self, source: NumpySequence, length: int) -> None:
        """Take over the first ``length`` positions of another sequence of the model; this one must be empty.

        Raises:
            RuntimeError: it is not, or they are not there, or there is no room for them.
        """
        self.check_room(length)
        if self.length or length > source.length:
            raise RuntimeError(f"{length} positions of a sequence of {source.length} cannot go to one of {self.length}")
        self._keys[:, :, :length] = source._keys[:, :, :length]
        self._values[:, :, :length] = source._values[:, :, :length]
        self.length = length

    def attend(self, layer: int, q: Array, k: Array, v: Array) -> Array:
        """Store keys and values [T,K,C] of new positions; what their queries [T,H,C] attend to, [T,H*C]."""
        past, new = self.length, len(q)
        self._keys[layer, :, past : past + new] = k.swapaxes(0, 1)
        self._values[layer, :, past : past + new] = v.swapaxes(0, 1)
        grouped = q.reshape(new, k.shape[1], -1, q.shape[-1]).transpose(1, 2, 0, 3)  # [K,H/K,T,C]
        out = []
        for start in range(0, new, _QUERIES):
            some = grouped[:, :, start : start + _QUERIES]
            count, until = some.shape[2], past + start + some.shape[2]
            keys, values = self._keys[layer, :, None, :until], self._values[layer, :, None, :until]
            scores = some @ keys.swapaxes(-1, -2) * np.float32(q.shape[-1] ** -0.5)  # [K,H/K,T,S]
            if count > 1:
                scores[..., ~np.tri(count, until, until - count, dtype=bool)] = -np.inf
            out.append(NUMPY.softmax(scores) @ values)
        return np.concatenate(out, axis=2).transpose(2, 0, 1, 3).reshape(new, -1)


class NumpyEngine(PackedEngine):
    """Generation over numpy."""

    def __init__(self, model: NumpyModel) -> None:
        self.model, self.spec = model, model.spec
        self.title = f"numpy fp32 from {model.bits} bit on cpu"

    def allocate(self, capacity: int) -> NumpySequence:
        """Ordinary memory."""
        return NumpySequence(self.model, capacity)

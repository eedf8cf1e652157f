"""The native decoder behind the interface of generation, over numpy; nothing here imports torch.

Shapes: B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mobillama_v.backends.native.packed_format import Array
from mobillama_v.backends.native.prefix_cache import PrefixCache, Prompt, parts
from mobillama_v.backends.native.runtime import NativeModel, NativeSequence
from mobillama_v.generate import Engine, Sampling
from mobillama_v.prompt import Encoded


def sample(logits: Array, sampling: Sampling, random: np.random.Generator) -> list[int]:
    """Choose one token for each row of logits [B,V], as :meth:`Engine.sampler` says."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    scaled = logits.astype(np.float64) / sampling.temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return [_choose(row / row.sum(), sampling.top_p, random.random()) for row in powers]


def _choose(shares: Array, top_p: float, at: float) -> int:
    """The token that stands at the share ``at`` of the smallest set of mass ``top_p``, the likeliest first."""
    # All that are rarer than this have less than 1 - top_p together, and need not be sorted.
    likely = np.flatnonzero(shares >= (1 - top_p) / len(shares))
    order = likely[np.argsort(-shares[likely], kind="stable")]
    sums = shares[order].cumsum()
    inside = 1 + int((sums[:-1] < top_p).sum())  # the likeliest is always inside
    return int(order[min(sums[:inside].searchsorted(at * sums[inside - 1], "right"), inside - 1)])


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
        self.kept = PrefixCache(keep)
        self.title = f"native {model.bits} bit on cpu ({model.path})"

    def compose(self, prompts: Sequence[Encoded], images: Sequence[Any], pad_id: int) -> tuple[Array, Array]:
        """fp32; images are arrays, or torch's tensors on the CPU."""
        counts = [len(prompt.input_ids) for prompt in prompts]
        shape = (len(prompts), max(counts))
        ids, slots, exists = np.full(shape, pad_id), np.zeros(shape, bool), np.zeros(shape, np.int64)
        for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
            here = slice(shape[1] - count, None)
            ids[i, here], slots[i, here], exists[i, here] = prompt.input_ids, prompt.image_mask, 1
        embeds = self.model.embed(ids)
        if images:
            embeds[slots] = np.concatenate([_array(each) for each in images])
        return embeds, exists

    def sampler(self, sampling: Sampling) -> Callable[[Array], list[int]]:
        """Computes in fp64."""
        random = np.random.default_rng(sampling.seed)
        return lambda logits: sample(logits, sampling, random)

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
            tokens = [np.array([token]) for one in together for token in one.tokens]
            found = self.model.forward([each for one in together for each in one.sequences], tokens)
            ends = np.cumsum([len(one.tokens) for one in together])[:-1]
            for one, logits in zip(together, np.split(found, ends), strict=True):
                one.found = logits
                self.drop(one)


class _Answering:
    """A batch being answered. Padding is left out: every row has a sequence of its own length."""

    def __init__(self, engine: NativeEngine, rows: int, capacity: int) -> None:
        self._engine = engine
        self.sequences = [NativeSequence(engine.model, capacity) for _ in range(rows)]
        self.tokens: list[int] = []
        self.found: Array = np.empty(0)

    def prefill(self, inputs_embeds: Array, attention_mask: Array) -> Array:
        engine = self._engine
        rows = zip(inputs_embeds, attention_mask, self.sequences, strict=True)
        prompts = [Prompt(embeds[exists.astype(bool)], sequence) for embeds, exists, sequence in rows]
        found = parts(prompts, engine.kept.all())
        logits = np.empty((len(prompts), engine.spec.vocab_size), np.float32)
        for turn in range(1 + max(part.turn for part in found)):
            some = [i for i, part in enumerate(found) if part.turn == turn]
            left = [found[i].begin() for i in some]
            logits[some] = engine.model.forward([self.sequences[i] for i in some], left)
        engine.kept.add(prompts)
        return logits

    def push(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self._engine.add(self)

    def logits(self) -> Array:
        self._engine.run(self)
        return self.found

    def close(self) -> None:
        self._engine.drop(self)


def _array(features: Any) -> Array:
    return features if isinstance(features, np.ndarray) else features.float().numpy()

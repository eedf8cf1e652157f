"""The native decoder behind the interface of generation: :mod:`mobillama_v.engine.runtime` for torch's tensors.

Shapes: B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence as Several

import torch
from torch import Tensor

from mobillama_v.engine.prefix import Kept, Prompt, parts
from mobillama_v.engine.runtime import NativeModel, NativeSequence
from mobillama_v.generation import Engine


def forward(model: NativeModel, sequences: Several[NativeSequence], inputs: Several[Tensor]) -> Tensor:
    """:meth:`NativeModel.forward` of tensors, which are not copied where they are fp32."""
    arrays = [(each.detach().float() if each.is_floating_point() else each).numpy() for each in inputs]
    return torch.from_numpy(model.forward(sequences, arrays))


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
        return torch.from_numpy(self.model.embed(ids.numpy()))

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
            found = forward(self.model, [each for one in together for each in one.sequences], list(tokens[:, None]))
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
            logits[some] = forward(engine.model, [self.sequences[i] for i in some], left)
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

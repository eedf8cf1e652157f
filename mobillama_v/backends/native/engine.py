"""A packed decoder behind the interface of generation, over numpy; nothing here imports torch.

Shapes: B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mobillama_v.backends.native.packed_format import Array
from mobillama_v.backends.native.runtime import NativeModel, NativeSequence
from mobillama_v.generate import Engine, Prompt
from mobillama_v.prefix_cache import PrefixPlan


class PackedEngine(Engine):
    """Generation by a model whose ``forward(sequences, inputs)`` appends to sequences; nothing is padded."""

    model: Any

    def embed(self, prompt: Prompt) -> Array:
        """fp32; images are arrays, or torch's tensors on the CPU."""
        embeds: Array = self.model.embed(np.array(prompt.encoded.input_ids))
        if prompt.images:
            features = [each if isinstance(each, np.ndarray) else each.float().numpy() for each in prompt.images]
            embeds[np.array(prompt.encoded.image_mask)] = np.concatenate(features)
        return embeds

    def run(self, parts: Sequence[PrefixPlan]) -> Array:
        """What is left of every prompt, and nothing else.

        Raises:
            RuntimeError: as the model's ``forward``.
        """
        for part in parts:
            if part.source is not None:
                part.prompt.sequence.copy(part.source.sequence, part.start)
        left = [part.prompt.embeds[part.start :] for part in parts]
        logits: Array = self.model.forward([part.prompt.sequence for part in parts], left)
        return logits

    def decode(self, sequences: Sequence[Any], tokens: Sequence[int]) -> Array:
        """One pass through the weights for all.

        Raises:
            RuntimeError: as the model's ``forward``; then none has run.
        """
        logits: Array = self.model.forward(sequences, [np.array([token]) for token in tokens])
        return logits


class NativeEngine(PackedEngine):
    """Generation by the native library.

    Every output is summed in one order: a row's logits are bit for bit those that it would get alone, whatever runs
    with it and whichever prefix it takes over.
    """

    def __init__(self, model: NativeModel) -> None:
        self.model, self.spec = model, model.spec
        self.title = f"native {model.bits} bit on cpu ({model.path})"

    def allocate(self, capacity: int) -> NativeSequence:
        """Room in the library."""
        return NativeSequence(self.model, capacity)

"""The decoder in torch behind the interface of generation. Greedy results are those of transformers' ``generate()``.

Shapes: B rows, T prompt positions, W positions of a pass, S positions of a cache, L layers, K key/value heads,
C head width, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mobillama_v.generate import Array, Engine, Prompt
from mobillama_v.model.decoder import causal_mask, position_ids_from_mask
from mobillama_v.model.kv_cache import StaticCache
from mobillama_v.model.vlm import place_image_features
from mobillama_v.prefix_cache import PrefixPlan


class TorchEngine(Engine):
    """Runs a model that has a :class:`~mobillama_v.model.decoder.Decoder` as ``language_model`` and a head as
    ``lm_head``.

    Rows that run together share one cache, padded on the left. Where other rows come together than in the last pass,
    their keys and values are copied into a new cache, once; then they run as one batch. A row that ended stays in the
    cache until half of the rows have ended.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.spec = model, model.language_model.spec
        weight = model.lm_head.weight
        self.title = f"PyTorch {str(weight.dtype).removeprefix('torch.')} on {weight.device}"

    @torch.inference_mode()
    def embed(self, prompt: Prompt) -> Tensor:
        """On the model's device."""
        ids = torch.tensor(prompt.encoded.input_ids, device=self.model.lm_head.weight.device)
        embeds = self.model.language_model.embed_tokens(ids)
        if not prompt.images:
            return embeds
        features = torch.stack([torch.as_tensor(each) for each in prompt.images])
        return place_image_features(embeds[None], torch.tensor([prompt.encoded.image_mask]), features)[0]

    def allocate(self, capacity: int) -> TorchSequence:
        """A sequence that gets its memory when it first runs."""
        return TorchSequence(capacity)

    @torch.inference_mode()
    def run(self, parts: Sequence[PrefixPlan]) -> Array:
        """As many positions of each row as the one with the most left to run has; the others run some of theirs anew,
        and where a row is shorter than that, padding."""
        width = max(len(part.prompt.embeds) - part.start for part in parts)
        sequences = []
        for part in parts:
            sequence, total = part.prompt.sequence, len(part.prompt.embeds)
            if part.source is not None:
                sequence.take(part.source.sequence)
            sequence.length = max(0, total - width)
            sequences.append(sequence)
        embeds = [part.prompt.embeds[-width:] for part in parts]
        batch = _Batch(self.model, sequences, [len(each) for each in embeds])
        return batch.forward(_pad_left(embeds))

    @torch.inference_mode()
    def decode(self, sequences: Sequence[TorchSequence], tokens: Sequence[int]) -> Array:
        """Rows that stay in the cache without going on get a token that nobody reads."""
        batch = sequences[0].batch
        if batch is None or not batch.holds(sequences):
            batch = _Batch(self.model, sequences, [0] * len(sequences))
        ids = torch.zeros(len(batch.exists), 1, dtype=torch.long)
        rows = [sequence.row for sequence in sequences]
        ids[rows, 0] = torch.tensor(tokens)
        logits = batch.forward(self.model.language_model.embed_tokens(ids.to(batch.exists.device)))
        for sequence in sequences:
            sequence.length += 1
        return logits[rows]

    def detach(self, sequence: TorchSequence) -> TorchSequence:
        """A copy, where other rows share its cache."""
        if sequence.batch is None or len(sequence.batch.exists) == 1:
            return sequence
        alone = TorchSequence(sequence.length)
        alone.take(sequence)
        alone.length = sequence.length
        _Batch(self.model, [alone], [0])
        return alone


class TorchSequence:
    """One row of a cache: ``length`` positions, that begin in the column ``start`` of ``row``."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.batch: _Batch | None = None
        self.row = self.start = 0

    def take(self, other: TorchSequence) -> None:
        """Begin as another one does; where both are is copied when this one runs."""
        self.batch, self.row, self.start = other.batch, other.row, other.start


class _Batch:
    """Rows that run together: a cache in which all end in the same column."""

    def __init__(self, model: Any, sequences: Sequence[TorchSequence], new: Sequence[int]) -> None:
        """Copy what the sequences hold, and make them rows of this; ``new`` positions of each run in the next pass."""
        self._model = model
        weight, width = model.lm_head.weight, max(new)
        length = max(sequence.length for sequence in sequences)
        left = max(each.capacity - each.length - count for each, count in zip(sequences, new, strict=True))
        self._cache = StaticCache(
            model.language_model.spec,
            rows=len(sequences),
            capacity=length + width + left,
            dtype=weight.dtype,
            device=weight.device,
        )
        self._cache.length = length
        self.exists = torch.ones(len(sequences), self._cache.capacity, dtype=torch.long, device=weight.device)  # [B,S]
        for row, (sequence, count) in enumerate(zip(sequences, new, strict=True)):
            start = length - sequence.length
            for mine, theirs in ((self._cache.keys, "keys"), (self._cache.values, "values")):
                mine[:, row, :, :start] = 0  # masked, and must be numbers
                if sequence.length:
                    assert sequence.batch is not None
                    held = getattr(sequence.batch._cache, theirs)[:, sequence.row]
                    mine[:, row, :, start:length] = held[:, :, sequence.start : sequence.start + sequence.length]
            sequence.start = length + width - sequence.length - count
            self.exists[row, : sequence.start] = 0
            sequence.length += count
            sequence.batch, sequence.row = self, row
        self._padded = not bool(self.exists.all())

    def holds(self, sequences: Sequence[TorchSequence]) -> bool:
        """Whether these are rows of this, more than half of them, and have run in every pass."""
        end = self._cache.length
        return 2 * len(sequences) > len(self.exists) and all(
            each.batch is self and each.start + each.length == end for each in sequences
        )

    def forward(self, embeds: Tensor) -> Array:
        """Run embeddings [B,W,D]; logits [B,V] after the last."""
        width = embeds.shape[1]
        exists = self.exists[:, : self._cache.length + width]
        plain = not self._padded and width in (1, exists.shape[1])
        hidden = self._model.language_model(
            embeds,
            position_ids=position_ids_from_mask(exists)[:, -width:],
            mask=None if plain else causal_mask(exists, width),
            cache=self._cache,
        )
        return self._model.lm_head(hidden[:, -1]).float().cpu().numpy()


def _pad_left(rows: Sequence[Tensor]) -> Tensor:
    """[T,D] of several lengths to [B,W,D], zeros before the shorter ones."""
    out = rows[0].new_zeros(len(rows), max(map(len, rows)), rows[0].shape[1])
    for i, row in enumerate(rows):
        out[i, len(out[i]) - len(row) :] = row
    return out

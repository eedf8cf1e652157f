"""Many questions on one image: what comes before the question is run once.

A prompt begins with the same tokens for every question on an image: the system's sentence and the image itself, which
are most of it. Their keys and values are kept, and only the rest of each prompt is run against them. In the mask, the
padding of a batch stands between the two, so that a row is answered as it would be alone.

Shapes: B rows, P positions of the common part, S of the longest rest, D decoder width.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mobillama_v.assistant import Assistant
from mobillama_v.backends.torch import decode_one_token
from mobillama_v.generate import TextStream
from mobillama_v.model.decoder import causal_mask, position_ids_from_mask
from mobillama_v.model.kv_cache import StaticCache
from mobillama_v.model.vlm import place_image_features
from mobillama_v.prompt import Encoded


class Row(NamedTuple):
    """A prompt: what its images are called, the prompt itself, and its images' features, each [P',D]."""

    key: Hashable
    encoded: Encoded
    features: Sequence[Tensor]

    @property
    def common(self) -> int:
        """Positions up to the end of the last image."""
        mask = self.encoded.image_mask
        return len(mask) - mask[::-1].index(True) if True in mask else 0


class PrefixReader:
    """Answers prompts greedily, keeping the keys and values of common parts until :meth:`forget`."""

    def __init__(self, assistant: Assistant, max_new_tokens: int) -> None:
        self._network, self._tokenizer = assistant.network, assistant.tokenizer
        self._context, self._device = assistant.context, assistant.device
        self._max_new_tokens = max_new_tokens
        self._kept: dict[Hashable, tuple[Tensor, Tensor]] = {}

    def forget(self) -> None:
        """Free what is kept."""
        self._kept.clear()

    @torch.inference_mode()
    def answer(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Text and finish reason of each row; all rows have common parts of one length, which is not 0.

        Raises:
            ValueError: they have not.
        """
        common = {row.common for row in rows}
        if len(common) != 1 or 0 in common:
            raise ValueError(f"the rows' common parts have the lengths {sorted(common)}, and must have one above 0")
        (length,) = common
        new = {row.key: row for row in rows if row.key not in self._kept}
        if new:
            self._run_common(list(new.values()), length)
        return self._run_rest(rows, length)

    def _run_common(self, rows: Sequence[Row], length: int) -> None:
        model = self._network.language_model
        ids = torch.tensor([row.encoded.input_ids[:length] for row in rows], device=self._device)
        slots = torch.tensor([row.encoded.image_mask[:length] for row in rows])
        features = torch.stack([each for row in rows for each in row.features])
        embeds = place_image_features(model.embed_tokens(ids), slots, features)  # [B,P,D]
        cache = self._cache(embeds, length)
        positions = torch.arange(length, device=self._device).expand(len(rows), -1)
        model(embeds, position_ids=positions, cache=cache)
        for i, row in enumerate(rows):
            self._kept[row.key] = cache.keys[:, i], cache.values[:, i]

    def _run_rest(self, rows: Sequence[Row], common: int) -> list[tuple[str, str]]:
        rest = [row.encoded.input_ids[common:] for row in rows]
        longest = max(map(len, rest))
        budget = min(self._max_new_tokens, self._context - common - longest)
        ids = torch.full((len(rows), longest), self._tokenizer.pad_id)
        exists = torch.ones((len(rows), common + longest + budget), dtype=torch.long)
        for i, tokens in enumerate(rest):
            ids[i, longest - len(tokens) :] = torch.tensor(tokens)
            exists[i, common : common + longest - len(tokens)] = 0
        ids, exists = ids.to(self._device), exists.to(self._device)
        model = self._network.language_model
        embeds = model.embed_tokens(ids)  # [B,S,D]
        cache = self._cache(embeds, common + longest + budget)
        for i, row in enumerate(rows):
            keys, values = self._kept[row.key]
            cache.keys[:, i, :, :common], cache.values[:, i, :, :common] = keys, values
        cache.length = common
        seen = exists[:, : common + longest]
        positions = position_ids_from_mask(seen)[:, common:]
        hidden = model(embeds, position_ids=positions, mask=causal_mask(seen, longest), cache=cache)
        return self._decode(self._network.lm_head(hidden[:, -1]), exists, common + longest, budget, cache)

    def _decode(
        self, logits: Tensor, exists: Tensor, length: int, budget: int, cache: StaticCache
    ) -> list[tuple[str, str]]:
        texts = [TextStream(self._tokenizer, ()) for _ in range(len(logits))]
        reasons = ["length"] * len(texts)
        open_rows = set(range(len(texts)))
        for step in range(budget):
            tokens = logits.argmax(-1)
            for i, token in enumerate(tokens.tolist()):
                if i in open_rows and token == self._tokenizer.eos_id:
                    open_rows.remove(i)
                    reasons[i] = "stop"
                elif i in open_rows:
                    texts[i].push(token)
            if not open_rows or step == budget - 1:
                break
            logits = decode_one_token(self._network, tokens, exists[:, : length + step + 1], cache)
        for text in texts:
            text.flush()
        return [(text.text.strip(), reason) for text, reason in zip(texts, reasons, strict=True)]

    def _cache(self, embeds: Tensor, capacity: int) -> StaticCache:
        spec = self._network.language_model.spec
        return StaticCache(spec, rows=len(embeds), capacity=capacity, dtype=embeds.dtype, device=self._device)

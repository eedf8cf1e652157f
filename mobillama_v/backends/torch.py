"""The decoder in torch behind the interface of generation. Greedy results are those of transformers' ``generate()``.

Shapes: B rows, T prompt positions (padded on the left), D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mobillama_v.generate import Decoding, Engine, Sampling
from mobillama_v.model.decoder import causal_mask, position_ids_from_mask
from mobillama_v.model.kv_cache import StaticCache
from mobillama_v.model.vlm import place_image_features
from mobillama_v.prompt import Encoded


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """Choose one token [B] from logits [B,V]: the greatest, or by temperature within the smallest set of mass top_p."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p  # the most likely token is always inside
        probabilities = torch.zeros_like(ordered).scatter(-1, order, ordered.masked_fill(outside, 0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def prefill(model: Any, inputs_embeds: Tensor, attention_mask: Tensor, cache: StaticCache) -> Tensor:
    """Run the prompt [B,T,D] into the cache; logits [B,V] for the first new token."""
    length = inputs_embeds.shape[1]
    mask = None if bool(attention_mask.all()) else causal_mask(attention_mask, length)
    positions = position_ids_from_mask(attention_mask)
    hidden = model.language_model(inputs_embeds, position_ids=positions, mask=mask, cache=cache)
    return model.lm_head(hidden[:, -1])


def decode_one_token(model: Any, tokens: Tensor, attention_mask: Tensor, cache: StaticCache) -> Tensor:
    """Run one token a row [B] against the cache; ``attention_mask`` [B,S] covers it. Logits [B,V] for the next."""
    mask = None if bool(attention_mask.all()) else causal_mask(attention_mask, 1)
    positions = position_ids_from_mask(attention_mask)[:, -1:]
    embeds = model.language_model.embed_tokens(tokens[:, None])
    hidden = model.language_model(embeds, position_ids=positions, mask=mask, cache=cache)
    return model.lm_head(hidden[:, -1])


class TorchEngine(Engine):
    """Runs a model that has a :class:`~mobillama_v.model.decoder.Decoder` as ``language_model`` and a head as
    ``lm_head``."""

    def __init__(self, model: Any) -> None:
        self.model, self.spec = model, model.language_model.spec
        weight = model.lm_head.weight
        self.title = f"PyTorch {str(weight.dtype).removeprefix('torch.')} on {weight.device}"

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [...,D] on the model's device."""
        table = self.model.language_model.embed_tokens
        return table(ids.to(table.weight.device))

    @torch.inference_mode()
    def compose(self, prompts: Sequence[Encoded], images: Sequence[Any], pad_id: int) -> tuple[Tensor, Tensor]:
        """Tensors on the model's device."""
        longest = max(len(prompt.input_ids) for prompt in prompts)
        ids = torch.full((len(prompts), longest), pad_id)
        slots = torch.zeros((len(prompts), longest), dtype=torch.bool)
        exists = torch.zeros((len(prompts), longest), dtype=torch.long)
        for i, prompt in enumerate(prompts):
            start = longest - len(prompt.input_ids)
            ids[i, start:] = torch.tensor(prompt.input_ids)
            slots[i, start:] = torch.tensor(prompt.image_mask)
            exists[i, start:] = 1
        embeds = self.embed(ids)
        if images:
            embeds = place_image_features(embeds, slots, torch.stack(tuple(images)))
        return embeds, exists.to(embeds.device)

    def sampler(self, sampling: Sampling) -> Callable[[Tensor], list[int]]:
        """Computes where the logits are."""
        generator: torch.Generator | None = None
        if sampling.seed is not None:
            device = self.model.lm_head.weight.device
            generator = torch.Generator(device=device).manual_seed(sampling.seed)
        return lambda logits: sample(logits, sampling, generator).tolist()

    def begin(self, rows: int, capacity: int) -> Decoding:
        """A static cache of that size."""
        return _TorchDecoding(self.model, rows, capacity)


class _TorchDecoding:
    def __init__(self, model: Any, rows: int, capacity: int) -> None:
        weight = model.lm_head.weight
        self._model = model
        self._cache = StaticCache(
            model.language_model.spec, rows=rows, capacity=capacity, dtype=weight.dtype, device=weight.device
        )
        self._exists = torch.ones(rows, capacity, dtype=torch.long, device=weight.device)
        self._tokens: list[int] = []

    @torch.inference_mode()
    def prefill(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        self._exists[:, : attention_mask.shape[1]] = attention_mask
        return prefill(self._model, inputs_embeds, attention_mask, self._cache)

    def push(self, tokens: list[int]) -> None:
        self._tokens = tokens

    @torch.inference_mode()
    def logits(self) -> Tensor:
        tokens = torch.tensor(self._tokens, device=self._exists.device)
        return decode_one_token(self._model, tokens, self._exists[:, : self._cache.length + 1], self._cache)

    def close(self) -> None:
        pass

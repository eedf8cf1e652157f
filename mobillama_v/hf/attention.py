"""Attention by the implementation that transformers' users choose, and its weights for those who ask for them.

Shapes: B rows, H heads, K key/value heads, T queries, S keys, C width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mobillama_v.errors import ConfigError
from mobillama_v.model.decoder import Attend


def attention(implementation: str | None, weights: list[Tensor] | None) -> Attend | None:
    """What computes attention in the decoder; None is torch's own kernel.

    Args:
        implementation: as transformers names it: ``sdpa``, ``eager``, ``flex_attention``, ``flash_attention_2``, …
        weights: a list to which every layer's weights [B,H,T,S] are appended; None where they are not asked for.

    Raises:
        ConfigError: weights are asked of an implementation that has none.
    """
    named = implementation or "sdpa"
    if weights is not None and named not in ("sdpa", "eager"):
        raise ConfigError(f"{named} gives no attention weights; load with attn_implementation='eager'.")
    if weights is None and named == "sdpa":
        return None

    def attend(layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        if named in ("sdpa", "eager"):
            out, shares = _eager(q, k, v, mask, layer.num_key_value_groups)
            if weights is not None:
                weights.append(shares)
            return out
        compute: Any = ALL_ATTENTION_FUNCTIONS[named]
        return compute(layer, q, k, v, mask, scaling=layer.head_dim**-0.5, dropout=0.0)[0]

    return attend


def _eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    """What is attended to [B,T,H,C], and how much [B,H,T,S], of queries [B,H,T,C] by keys and values [B,K,S,C]."""
    k, v = (each.repeat_interleave(groups, dim=1) for each in (k, v))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
    hidden = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~mask, hidden) if mask.dtype == torch.bool else scores + mask
    shares = scores.float().softmax(-1).to(q.dtype)
    return (shares @ v).transpose(1, 2), shares

"""The MobiLlama decoder: a Llama whose ONE feed-forward network is shared by all layers (arXiv 2402.16840, section 3).

Plain torch, whole on this page, used by training, by transformers' ``generate()`` and by our own generation. The
arithmetic is Llama's (pre-norm RMSNorm, rotary positions, SwiGLU; on request Qwen2's biases or Qwen3's norms), the
parameter names are those of transformers' ``LlamaModel``, except that the shared network is held once, as
``feed_forward``, and given to the blocks. transformers' Llama modules are not imported: that costs 5 s of start-up, and
they own an FFN each.

Shapes: B batch, T new positions, S positions attended to (cache included), D hidden, H query heads, K key/value heads,
C head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama_v.config import DecoderConfig, Llama3Rope

Attend: TypeAlias = Callable[["Attention", Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Computes attention [B,T,H,C] from a layer, its queries [B,H,T,C], keys and values [B,K,S,C], and a mask."""
Mask: TypeAlias = Tensor | tuple[int, ...]
"""What a position may attend to: a tensor [B,1,T,S], True (or 0) where it may; or the lengths of the samples that are
packed one after the other into the only row, each attending to itself alone, causally."""


class KVCache(Protocol):
    """What attention needs of a cache; transformers' own caches satisfy it."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Store new keys and values [B,K,T,C] of a layer; return all of that layer's [B,K,S,C]."""
        ...


class RMSNorm(nn.Module):
    """Root-mean-square normalization, computed in fp32 as Llama does."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotary_tables(
    position_ids: Tensor, *, head_dim: int, theta: float, dtype: torch.dtype, scaling: Llama3Rope | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B,1,T,C] of the rotary embedding (RoFormer, arXiv 2104.09864) for ``position_ids`` [B,T]."""
    exponent = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**exponent
    angles = position_ids[:, None, :, None].float() * (scaling.scale(frequencies) if scaling else frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x`` [B,H,T,C] by its positions; the two halves of C are the pairs, as in Llama."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal multi-head attention (grouped key/value heads allowed) over torch's scaled-dot-product kernel."""

    def __init__(self, spec: DecoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx, self.head_dim = layer_idx, spec.head_dim
        self.num_key_value_groups = spec.num_attention_heads // spec.num_key_value_heads
        self.q_proj = nn.Linear(spec.hidden_size, spec.query_width, bias=spec.qkv_bias)
        self.k_proj = nn.Linear(spec.hidden_size, spec.key_width, bias=spec.qkv_bias)
        self.v_proj = nn.Linear(spec.hidden_size, spec.key_width, bias=spec.qkv_bias)
        self.o_proj = nn.Linear(spec.query_width, spec.hidden_size, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, spec.rms_norm_eps) if spec.qk_norm else None
        self.k_norm = RMSNorm(spec.head_dim, spec.rms_norm_eps) if spec.qk_norm else None

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Mask | None,
        cache: KVCache | None,
        attend: Attend | None = None,
    ) -> Tensor:
        """Attend from ``x`` [B,T,D]; a ``mask`` of None means causal, an ``attend`` of None torch's kernel."""
        batch, length, _ = x.shape
        q, k, v = (
            proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)  # [B,H|K,T,C]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        if isinstance(mask, tuple):  # a call for each sample: a mask over the row would cost its length squared
            samples = zip(q.split(mask, dim=2), k.split(mask, dim=2), v.split(mask, dim=2), strict=True)
            out = torch.cat([self._attend(*sample, None) for sample in samples], dim=1)
        else:
            out = self._attend(q, k, v, mask) if attend is None else attend(self, q, k, v, mask)
        return self.o_proj(out.reshape(batch, length, -1))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """What is attended to [B,T,H,C], by queries [B,H,T,C]."""
        causal = mask is None and q.shape[2] > 1
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.num_key_value_groups > 1
        )
        return out.transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU feed-forward network (arXiv 2002.05202)."""

    def __init__(self, spec: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: its own attention and norms, and its own FFN only where the FFN is not shared."""

    def __init__(self, spec: DecoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Attention(spec, layer_idx)
        self.mlp = FeedForward(spec) if spec.ffn_sharing == "none" else None
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        feed_forward: FeedForward | None,
        rotary: tuple[Tensor, Tensor],
        mask: Mask | None,
        cache: KVCache | None,
        attend: Attend | None = None,
    ) -> Tensor:
        """Map [B,T,D] to [B,T,D] with the decoder's shared FFN, or with the block's own where that is None."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache, attend)
        network = feed_forward if self.mlp is None else self.mlp
        assert network is not None
        return x + network(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings, blocks, one feed-forward network, final norm. The head is its owner's (it is untied)."""

    def __init__(self, spec: DecoderConfig) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.feed_forward = FeedForward(spec) if spec.ffn_sharing == "all" else None
        self.layers = nn.ModuleList(Block(spec, i) for i in range(spec.num_hidden_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Any = None  # transformers sets it

    def forward(
        self,
        inputs_embeds: Tensor,
        *,
        position_ids: Tensor,
        mask: Mask | None = None,
        cache: KVCache | None = None,
        hidden_states: list[Tensor] | None = None,
        attend: Attend | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            inputs_embeds: [B,T,D].
            position_ids: [B,T] rotary positions.
            mask: [B,1,T,S], boolean (True attends) or additive, or lengths of packed samples; None is plain causal
                attention.
            cache: keys and values of earlier positions; updated in place.
            hidden_states: when given, the input of every layer and the final output are appended to it.
            attend: computes attention; None is torch's kernel.

        Returns:
            The normalized hidden state [B,T,D].
        """
        x = inputs_embeds
        rotary = rotary_tables(
            position_ids,
            head_dim=self.spec.head_dim,
            theta=self.spec.rope_theta,
            dtype=x.dtype,
            scaling=self.spec.llama3_rope,
        )
        for block in self.layers:
            if hidden_states is not None:
                hidden_states.append(x)
            args: tuple[Any, ...] = (x, self.feed_forward, rotary, mask, cache, attend)
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(block.__call__, *args)
            else:
                x = block(*args)
        x = self.norm(x)
        if hidden_states is not None:
            hidden_states.append(x)
        return x


def causal_mask(attention_mask: Tensor, length: int) -> Tensor:
    """Boolean mask [B,1,T,S] for the last ``length`` of S positions, given which positions exist: [B,S].

    Position t sees every existing position up to itself, and always itself, so that a padded row has a defined result.
    """
    total = attention_mask.shape[1]
    columns = torch.arange(total, device=attention_mask.device)
    rows = torch.arange(length, device=attention_mask.device) + (total - length)  # a slice's length torch.export loses
    allowed = (columns[None, :] <= rows[:, None])[None] & attention_mask[:, None, :].bool()
    allowed = allowed | (columns[None, :] == rows[:, None])[None]
    return allowed[:, None]


def position_ids_from_mask(attention_mask: Tensor) -> Tensor:
    """Rotary positions [B,S] that count only existing positions, so that padding on the left changes nothing."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)

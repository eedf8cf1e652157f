"""Linear layers and attention outside the decoder, in 8 bits by the native library.

Shapes: N images, T tokens of an image, D width, A row panels of 16 rows, B blocks of 32 columns.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama_v.backends.native.layers import ThreadPool
from mobillama_v.backends.native.tiles import pack_matrix, tiles_shape, unpack_matrix

BITS = 8
_MAX_THREADS = 8  # as many as the decoder takes


@lru_cache(maxsize=1)
def _thread_pool(threads: int) -> ThreadPool:
    return ThreadPool(threads)


def thread_pool() -> ThreadPool:
    """The pool of this process, with as many threads as torch uses now."""
    return _thread_pool(min(torch.get_num_threads(), _MAX_THREADS))


class PackedLinear(nn.Module):
    """What an :class:`~torch.nn.Linear` computes, with weights and inputs rounded to 8 bits in blocks of 32."""

    tiles: Tensor
    bias: Tensor | None

    def __init__(self, rows: int, columns: int, *, bias: bool, like: Tensor) -> None:
        """Allocate the tiles on the device of ``like``; the bias has its type."""
        super().__init__()
        self.in_features, self.out_features = columns, rows
        tiles = torch.empty(tiles_shape(rows, columns, BITS), dtype=torch.uint8, device=like.device)
        self.register_buffer("tiles", tiles)
        self.register_buffer("bias", like.new_empty(rows) if bias else None)

    def fill(self, weight: Tensor, bias: Tensor | None, name: str) -> None:
        """Pack ``weight`` [rows, columns]; ``name`` is for the error.

        Raises:
            CheckpointError: numbers that are not finite.
        """
        self.tiles = pack_matrix(weight, BITS, name=name)
        self.bias = bias

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The matrix [rows, columns] that the packed numbers mean."""
        return unpack_matrix(self.tiles, BITS, self.out_features, self.in_features).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map [...,columns] to [...,rows] of the same type."""
        bias = None if self.bias is None else self.bias.float().numpy()
        y = thread_pool().linear(self.tiles.numpy(), bias, x.detach().float().numpy(), self.out_features)
        return torch.from_numpy(y).to(x.dtype)


class PackedAttention(nn.Module):
    """What an :class:`~torch.nn.MultiheadAttention` computes that attends to its own input without mask or dropout."""

    def __init__(self, width: int, heads: int, *, like: Tensor) -> None:
        """Allocate the weights on the device of ``like``."""
        super().__init__()
        self.heads = heads
        self.in_proj = PackedLinear(3 * width, width, bias=True, like=like)
        self.out_proj = PackedLinear(width, width, bias=True, like=like)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Map [N,T,D] to [N,T,D], in torch's form.

        Raises:
            ValueError: anything is asked for that an image tower does not ask.
        """
        if key is not query or value is not query or need_weights or attn_mask is not None:
            raise ValueError("packed attention is of one input to itself, without mask and weights")
        images, tokens, _ = query.shape
        q, k, v = self.in_proj(query).view(images, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(query.shape)
        return self.out_proj(attended), None

"""Keys and values of past positions, allocated once."""

from __future__ import annotations

import torch
from torch import Tensor

from mobillama_v.config import DecoderConfig


class StaticCache:
    """Room for ``capacity`` positions of B rows, filled from the front; a step allocates nothing.

    Attention gets views of the filled part only, so that a long capacity costs memory but no time.
    """

    def __init__(
        self, spec: DecoderConfig, *, rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (spec.num_hidden_layers, rows, spec.num_key_value_heads, capacity, spec.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # [L,B,K,S,C]
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.capacity, self.length = capacity, 0
        self._last_layer = spec.num_hidden_layers - 1

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Store new keys and values [B,K,T,C] of a layer; return all of that layer's, [B,K,S,C].

        Raises:
            ValueError: there is no room for T more positions.
        """
        end = self.length + key_states.shape[2]
        if end > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} positions and {end} were needed")
        keys, values = self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]
        keys[:, :, self.length :] = key_states
        values[:, :, self.length :] = value_states
        if layer_idx == self._last_layer:
            self.length = end
        return keys, values

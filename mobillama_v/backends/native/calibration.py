"""What activations weigh: 4-bit codes that err where it matters least.

A matrix W is used as W x. Codes chosen column by column, each column's error made good by the columns after it, keep
W x near to what it was for the inputs x that a model really has (GPTQ, Frantar et al., arXiv 2210.17323). All that is
needed of the inputs is their second moments, the mean of x xᵀ.

Shapes: N rows, K columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from mobillama_v.backends.native.packed_format import ffn_count
from mobillama_v.config import DecoderConfig


@contextmanager
def gathered_moments(decoder: nn.Module, lm_head: nn.Module, spec: DecoderConfig) -> Iterator[dict[str, Tensor]]:
    """Gather the second moments [K,K] of the inputs of every packed matrix while the decoder runs.

    A network that several layers share gathers those of all its uses. The sums are complete when the context ends.

    Args:
        decoder: a :class:`~mobillama_v.model.decoder.Decoder`.
        lm_head: its head.
        spec: of the decoder.

    Yields:
        Moments by the matrices' names of :func:`mobillama_v.backends.native.packed_format.matrices`; filled as the
        decoder runs.
    """
    sums: dict[str, Tensor] = {}
    hooks = []

    def listen(name: str, module: nn.Module) -> None:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().flatten(0, -2).float()
            sums[name] = x.T @ x + sums.get(name, 0.0)

        hooks.append(module.register_forward_pre_hook(add))

    listen("lm_head", lm_head)
    for i in range(ffn_count(spec)):
        network = decoder.get_submodule("feed_forward" if spec.ffn_sharing == "all" else f"layers.{i}.mlp")
        listen(f"feed_forward.{i}.gate_up", network.get_submodule("gate_proj"))
        listen(f"feed_forward.{i}.down", network.get_submodule("down_proj"))
    for i in range(spec.num_hidden_layers):
        attention = decoder.get_submodule(f"layers.{i}.self_attn")
        listen(f"layers.{i}.qkv", attention.get_submodule("q_proj"))
        listen(f"layers.{i}.out", attention.get_submodule("o_proj"))
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()

"""Decoders of odd shapes in torch and packed for the native library, for the tests of the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mobillama_v.backends.native import library
from mobillama_v.backends.native.runtime import NativeModel, NativeSequence
from mobillama_v.backends.native.torch_convert import pack, unpack
from mobillama_v.config import DecoderConfig, Llama3Rope
from mobillama_v.model.decoder import Decoder

# Widths that are no multiple of a tile, heads that share keys, and a feed-forward network per layer are among them.
SHAPES = {
    "shared": DecoderConfig(97, 64, 176, 3, 4, 4, 300),
    "ragged": DecoderConfig(103, 40, 50, 2, 5, 5, 300),
    "grouped": DecoderConfig(64, 96, 96, 2, 6, 2, 300),
    "own": DecoderConfig(97, 64, 80, 3, 2, 2, 300, ffn_sharing="none"),
    "biased": DecoderConfig(97, 64, 80, 2, 4, 2, 300, qkv_bias=True, llama3_rope=Llama3Rope(8.0, 1.0, 4.0, 64)),
    "normed": DecoderConfig(97, 40, 80, 2, 4, 2, 300, qk_norm=True, attention_head_dim=32),
}
PATHS = [] if library.missing() else library.paths()


class Plain(nn.Module):
    """A decoder and its head, as generation wants them."""

    def __init__(self, spec: DecoderConfig, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.language_model, self.lm_head = Decoder(spec), nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if "norm" in name:
                nn.init.uniform_(parameter, 0.5, 1.5)
            else:
                nn.init.normal_(parameter, std=1.0 if "embed" in name else 1.5 / spec.hidden_size**0.5)
        self.eval().requires_grad_(False)

    def logits(self, embeds: Tensor, cache: RoundedCache | None = None) -> Tensor:
        positions = torch.arange(embeds.shape[0])[None]
        return self.lm_head(self.language_model(embeds[None], position_ids=positions, cache=cache))[0]


class RoundedCache:
    """Rounds keys and values as the engine keeps them: to fp16 at 16 bits, else each head's of a position to 8 bits."""

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        return self._rounded(keys), self._rounded(values)

    def _rounded(self, x: Tensor) -> Tensor:
        if self._bits == 16:
            return x.half().float()
        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x / scale).round() * scale


def quantized_inputs(model: nn.Module) -> None:
    """Let every matrix take what the engine's 4-bit and 8-bit matrices take: 8-bit blocks of 32."""

    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        x = inputs[0]
        padded = nn.functional.pad(x, (0, -x.shape[-1] % 32)).unflatten(-1, (-1, 32))
        scale = padded.abs().amax(-1, keepdim=True) / 127
        rounded = (padded / scale.clamp(min=1e-30)).round() * scale
        return (rounded.flatten(-2)[..., : x.shape[-1]],)

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(hook)


def natives(model: Plain, bits: int, *, threads: int = 1, path: str | None = None) -> NativeModel:
    spec = model.language_model.spec
    return NativeModel(pack(model.language_model, model.lm_head, spec, bits), threads=threads, path=path)


def meant(model: Plain, bits: int) -> Plain:
    """The torch model with the numbers that the packed one means."""
    spec = model.language_model.spec
    out = Plain(spec)
    state, head = unpack(pack(model.language_model, model.lm_head, spec, bits))
    out.language_model.load_state_dict(state)
    out.lm_head.weight.copy_(head)
    return out


def forward(model: NativeModel, sequences: Sequence[NativeSequence], inputs: Sequence[Tensor]) -> Tensor:
    """:meth:`NativeModel.forward` of torch's tensors."""
    return torch.from_numpy(model.forward(sequences, [each.numpy() for each in inputs]))


def embed(model: NativeModel, ids: Tensor) -> Tensor:
    """:meth:`NativeModel.embed` of torch's tensors."""
    return torch.from_numpy(model.embed(ids.numpy()))


def run(model: NativeModel, embeds: Tensor, steps: list[int], capacity: int = 300) -> Tensor:
    """Logits after each of several pieces of a prompt."""
    sequence = NativeSequence(model, capacity)
    return torch.cat([forward(model, [sequence], [piece]) for piece in embeds.split(steps)])

"""What torch runs in ``mobillama-v bench run``: ``python -m mobillama_v.eval.bench_worker WAY FOLDER THREADS``.

A process a way, so that its memory can be told from the others'.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mobillama_v.config import DecoderConfig
from mobillama_v.eval.bench_serve import serve
from mobillama_v.model.decoder import Decoder

WAYS = ("torch fp32", "transformers fp32")
FLOATS = "decoder.safetensors"


class Floats(nn.Module):
    """A decoder and its head, as generation wants them."""

    def __init__(self, spec: DecoderConfig) -> None:
        super().__init__()
        self.language_model = Decoder(spec)
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)


Start = Callable[[Tensor, int], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""From ids [T] and room for as many new tokens: logits [V], and a function from the next token to its logits."""


def ours(spec: DecoderConfig, folder: Path) -> Start:
    """Our decoder."""
    from mobillama_v.backends.torch import TorchEngine
    from mobillama_v.generate import Prompt
    from mobillama_v.prompt import Encoded

    engine = TorchEngine(_floats(spec, folder))

    def start(ids: Tensor, room: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        prompt = Encoded()
        prompt.add(ids.tolist())
        sequences, logits = engine.prefill([Prompt(prompt)], room)

        def decode(token: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(engine.decode(sequences, [int(token)])[0])

        return torch.from_numpy(logits[0]), decode

    return start


def theirs(spec: DecoderConfig, folder: Path) -> Start:
    """transformers' Llama; where our layers have one feed-forward network, all of its have those tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = dataclasses.asdict(spec)  # named as a Llama's are, but for these two
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    del fields["ffn_sharing"]
    config = LlamaConfig(**fields, rope_parameters=rope)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    floats = _floats(spec, folder)
    state = {"lm_head.weight": floats.lm_head.weight}
    for name, tensor in floats.language_model.state_dict().items():
        shared = name.removeprefix("feed_forward.")
        layers = [name] if shared == name else [f"layers.{i}.mlp.{shared}" for i in range(spec.num_hidden_layers)]
        state |= {f"model.{each}": tensor for each in layers}
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its tables are no weights
    model.eval().requires_grad_(False)

    def start(ids: Tensor, _: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        out = model(ids[None], use_cache=True, logits_to_keep=1)
        state = out.past_key_values
        return out.logits[0, -1], lambda token: model(token[None, None], past_key_values=state).logits[0, -1]

    return start


def _floats(spec: DecoderConfig, folder: Path) -> Floats:
    from safetensors.torch import load_file

    with torch.device("meta"):
        model = Floats(spec)
    model.load_state_dict(load_file(folder / FLOATS), assign=True)
    return model.eval().requires_grad_(False)


def main() -> None:
    """Load, and answer requests until they end."""
    way, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    spec = DecoderConfig(**json.loads((folder / "spec.json").read_text()))
    run = theirs(spec, folder) if way == "transformers fp32" else ours(spec, folder)

    def start(ids: list[int], room: int) -> tuple[int, Callable[[int], int]]:
        logits, step = run(torch.tensor(ids), room)
        return int(logits.argmax()), lambda token: int(step(torch.tensor(token)).argmax())

    with torch.inference_mode():
        serve(start, {})


if __name__ == "__main__":
    main()

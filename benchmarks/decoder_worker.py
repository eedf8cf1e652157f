"""One backend of ``python -m benchmarks decoder``, as a process: ``… decoder_worker BACKEND FOLDER THREADS CAPACITY``.

A process a backend, so that its memory is its own; the native engine and llama.cpp run without torch. Each line of
standard input is a JSON request (``prompt``, ids, and ``new``, a number of tokens), and each line of standard output
the answer; the first says that the model is loaded.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mobillama_v.config import DecoderConfig

FLOATS = "decoder.safetensors"
NATIVE = {"native 4 bit": 4, "native 8 bit": 8}
"""Bits by backend."""
Start = Callable[[list[int], int], tuple[int, Callable[[int], int]]]
"""From a prompt's ids and room for as many new tokens: the likeliest token, and a function from a token to the next."""


class LlamaCppSettings(NamedTuple):
    """How llama.cpp runs: the file's type, flash attention, and whether the file is mapped into memory or read.

    It rearranges weights as it loads them, and has them twice where the file is mapped, which is its default.
    """

    kind: str
    flash: bool = False
    mapped: bool = True


LLAMA_CPP = {
    f"llama.cpp {kind.upper()}{words}": LlamaCppSettings(kind, *settings)
    for kind in ("q4_0", "q8_0")
    for words, settings in (("", (False, True)), (" flash", (True, True)), (" flash unmapped", (True, False)))
}
"""Settings by backend."""


class LlamaCpp:
    """A GGUF file in llama.cpp, through the C interface of llama-cpp-python, with room for one conversation."""

    def __init__(self, path: Path, settings: LlamaCppSettings, *, threads: int, capacity: int) -> None:
        """Load it on the CPU.

        Raises:
            RuntimeError: llama.cpp refuses it; with what it said.
        """
        import llama_cpp.llama_cpp as lib

        said: list[str] = []

        @lib.llama_log_callback
        def log(_: int, text: bytes, __: Any) -> None:
            said.append(text.decode(errors="replace"))
            del said[:-30]

        self._lib, self._log = lib, log  # what is called from C must live
        lib.llama_log_set(log, ctypes.c_void_p(0))
        lib.llama_backend_init()
        options = lib.llama_model_default_params()
        options.n_gpu_layers = 0
        if hasattr(options, "load_mode"):  # since the version 0.3.34 or so
            options.load_mode = lib.LLAMA_LOAD_MODE_MMAP if settings.mapped else lib.LLAMA_LOAD_MODE_NONE
        else:
            options.use_mmap = settings.mapped
        self._model = lib.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise RuntimeError(f"llama.cpp refuses {path}: {''.join(said)}")
        room = lib.llama_context_default_params()
        room.n_ctx = room.n_batch = capacity
        room.n_threads = room.n_threads_batch = threads
        if hasattr(room, "flash_attn_type"):
            room.flash_attn_type = int(settings.flash)
        else:
            room.flash_attn = settings.flash
        self._context = lib.llama_init_from_model(self._model, room)
        if not self._context:
            raise RuntimeError(f"llama.cpp gives no context: {''.join(said)}")
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self.system = lib.llama_print_system_info().decode(errors="replace")

    def prefill(self, ids: list[int]) -> Any:
        """Forget what was, and run a prompt; logits [V] after its last token, valid until the next call."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        return self._run(ids)

    def decode(self, token: int) -> Any:
        """Run one token more; logits [V]."""
        return self._run([token])

    def _run(self, ids: list[int]) -> Any:
        import numpy

        lib = self._lib
        tokens = (lib.llama_token * len(ids))(*ids)
        status = lib.llama_decode(self._context, lib.llama_batch_get_one(tokens, len(ids)))
        if status:
            raise RuntimeError(f"llama.cpp cannot run {len(ids)} tokens (status {status})")
        return numpy.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, -1), shape=(self.vocab,))

    def close(self) -> None:
        """Free its memory."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)


def _llama_cpp(settings: LlamaCppSettings, folder: Path, threads: int, capacity: int) -> tuple[Start, dict[str, Any]]:
    model = LlamaCpp(folder / f"{settings.kind}.gguf", settings, threads=threads, capacity=capacity)

    def start(ids: list[int], _: int) -> tuple[int, Callable[[int], int]]:
        return int(model.prefill(ids).argmax()), lambda token: int(model.decode(token).argmax())

    return start, {"system": model.system, **settings._asdict()}


def _native(bits: int, folder: Path, threads: int, _: int) -> tuple[Start, dict[str, Any]]:
    import numpy as np

    from mobillama_v.backends.native.packed_format import read
    from mobillama_v.backends.native.runtime import NativeModel, NativeSequence

    model = NativeModel(read(folder / str(bits), _spec(folder)), threads=threads)

    def start(ids: list[int], room: int) -> tuple[int, Callable[[int], int]]:
        sequence = NativeSequence(model, len(ids) + room)
        first = model.forward([sequence], [model.embed(np.array(ids))])
        return int(first.argmax()), lambda token: int(model.forward([sequence], [np.array([token])]).argmax())

    streamed, cached = model.traffic
    return start, {"path": model.path, "streamed_bytes": streamed, "cached_bytes": cached}


def _torch(folder: Path, threads: int, _: int) -> tuple[Start, dict[str, Any]]:
    import torch

    from mobillama_v.backends.torch import TorchEngine
    from mobillama_v.generate import Prompt
    from mobillama_v.prompt import Encoded

    torch.set_num_threads(threads)
    engine = TorchEngine(_floats(folder))

    def start(ids: list[int], room: int) -> tuple[int, Callable[[int], int]]:
        prompt = Encoded()
        prompt.add(ids)
        sequences, first = engine.prefill([Prompt(prompt)], room)
        return int(first.argmax()), lambda token: int(engine.decode(sequences, [token]).argmax())

    return start, {}


def _transformers(folder: Path, threads: int, _: int) -> tuple[Start, dict[str, Any]]:
    """transformers' Llama; where our layers have one feed-forward network, all of its have those tensors."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(threads)
    fields = dataclasses.asdict(_spec(folder))  # named as a Llama's are, but for these two
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    del fields["ffn_sharing"]
    config = LlamaConfig(**fields, rope_parameters=rope)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    floats = _floats(folder)
    state = {"lm_head.weight": floats.lm_head.weight}
    for name, tensor in floats.language_model.state_dict().items():
        shared = name.removeprefix("feed_forward.")
        layers = [name] if shared == name else [f"layers.{i}.mlp.{shared}" for i in range(config.num_hidden_layers)]
        state |= {f"model.{each}": tensor for each in layers}
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its tables are no weights
    model.eval().requires_grad_(False)

    def run(ids: list[int], **options: Any) -> tuple[int, Any]:
        with torch.inference_mode():
            out = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1, **options)
        return int(out.logits[0, -1].argmax()), out.past_key_values

    def start(ids: list[int], _: int) -> tuple[int, Callable[[int], int]]:
        first, cache = run(ids)
        return first, lambda token: run([token], past_key_values=cache)[0]

    return start, {}


BACKENDS: dict[str, Callable[[Path, int, int], tuple[Start, dict[str, Any]]]] = {
    **{name: partial(_native, bits) for name, bits in NATIVE.items()},
    "torch fp32": _torch,
    "transformers fp32": _transformers,
    **{name: partial(_llama_cpp, settings) for name, settings in LLAMA_CPP.items()},
}
"""By name, from a folder of weights, threads and positions: what runs, and facts about it."""


def _spec(folder: Path) -> DecoderConfig:
    return DecoderConfig(**json.loads((folder / "spec.json").read_text()))


def _floats(folder: Path) -> Any:
    """A decoder and its head, as generation wants them."""
    import torch
    from safetensors.torch import load_file
    from torch import nn

    from mobillama_v.model.decoder import Decoder

    spec = _spec(folder)
    with torch.device("meta"):
        head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        model = nn.ModuleDict({"language_model": Decoder(spec), "lm_head": head})
    model.load_state_dict(load_file(folder / FLOATS), assign=True)
    return model.eval().requires_grad_(False)


def answer(start: Start, ids: list[int], new: int) -> dict[str, Any]:
    """Seconds of a prompt and of all new tokens after the first, chosen greedily, and the tokens."""
    begin = time.perf_counter()
    token, step = start(ids, new)
    first = time.perf_counter()
    tokens = [token]
    for _ in range(new - 1):
        token = step(token)
        tokens.append(token)
    return {"prefill": first - begin, "decode": time.perf_counter() - first, "tokens": tokens}


def peak_rss() -> int:
    """The most bytes of memory that this process had; on Linux the usual call counts its parent's too."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Load, say so, and answer requests until they end."""
    backend, folder, threads, capacity = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    start, facts = BACKENDS[backend](folder, threads, capacity)
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(start, request["prompt"], request["new"]) | {"peak_rss": peak_rss()}), flush=True)


if __name__ == "__main__":
    main()

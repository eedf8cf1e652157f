"""llama.cpp in ``mobillama-v bench run``: ``python -m mobillama_v.eval.bench_llamacpp WAY FOLDER THREADS CAPACITY``.

Through the C interface of llama-cpp-python, and without torch, so that neither costs llama.cpp time or memory that are
not its own. Its weights are those of our packed decoder, number for number (:mod:`mobillama_v.interop.gguf`).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mobillama_v.eval.bench_serve import serve


class Setting(NamedTuple):
    """How llama.cpp runs: the file's type, flash attention, and whether the file is mapped into memory or read.

    It rearranges weights as it loads them, and has them twice where the file is mapped, which is its default.
    """

    kind: str
    flash: bool = False
    mapped: bool = True


SETTINGS = {
    f"llama.cpp {kind.upper()}{words}": Setting(kind, *setting)
    for kind in ("q4_0", "q8_0")
    for words, setting in (("", (False, True)), (" flash", (True, True)), (" flash unmapped", (True, False)))
}
"""Ways by name."""


def missing() -> str:
    """Why llama.cpp cannot be run here, and how to mend that; empty where it can."""
    for module, package in (("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")):
        if module not in sys.modules and find_spec(module) is None:
            return f"{package} is not installed (pip install {package})"
    return ""


class LlamaCpp:
    """A GGUF file in llama.cpp, with room for one conversation."""

    def __init__(self, path: Path, setting: Setting, *, threads: int, capacity: int) -> None:
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
            options.load_mode = lib.LLAMA_LOAD_MODE_MMAP if setting.mapped else lib.LLAMA_LOAD_MODE_NONE
        else:
            options.use_mmap = setting.mapped
        self._model = lib.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise RuntimeError(f"llama.cpp refuses {path}: {''.join(said)}")
        room = lib.llama_context_default_params()
        room.n_ctx = room.n_batch = capacity
        room.n_threads = room.n_threads_batch = threads
        if hasattr(room, "flash_attn_type"):
            room.flash_attn_type = int(setting.flash)
        else:
            room.flash_attn = setting.flash
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


def main() -> None:
    """Load, and answer requests until they end."""
    way, folder, threads, capacity = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    setting = SETTINGS[way]
    model = LlamaCpp(folder / f"{setting.kind}.gguf", setting, threads=threads, capacity=capacity)

    def start(ids: list[int], _: int) -> tuple[int, Callable[[int], int]]:
        return int(model.prefill(ids).argmax()), lambda token: int(model.decode(token).argmax())

    serve(start, {"system": model.system, **setting._asdict()})


if __name__ == "__main__":
    main()

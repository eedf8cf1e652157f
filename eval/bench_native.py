"""The native engine in ``mobillama-v bench run``: ``python -m mobillama_v.eval.bench_native WAY FOLDER THREADS``.

Without torch, as llama.cpp, so that its memory is its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mobillama_v.backends.native.packed_format import read
from mobillama_v.backends.native.runtime import NativeModel, NativeSequence
from mobillama_v.config import DecoderConfig
from mobillama_v.eval.bench_serve import serve

WAYS = {"native 4 bit": 4, "native 8 bit": 8}
"""Bits by way."""


def start(model: NativeModel, ids: list[int], room: int) -> tuple[int, Callable[[int], int]]:
    """As :data:`mobillama_v.eval.bench_serve.Start`."""
    sequence = NativeSequence(model, len(ids) + room)

    def decode(token: int) -> int:
        return int(model.forward([sequence], [np.array([token])]).argmax())

    return int(model.forward([sequence], [model.embed(np.array(ids))]).argmax()), decode


def main() -> None:
    """Load, and answer requests until they end."""
    way, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    spec = DecoderConfig(**json.loads((folder / "spec.json").read_text()))
    model = NativeModel(read(folder / str(WAYS[way]), spec), threads=threads)
    streamed, cached = model.traffic
    facts = {"path": model.path, "streamed_bytes": streamed, "cached_bytes": cached}
    serve(lambda ids, room: start(model, ids, room), facts)


if __name__ == "__main__":
    main()

"""Which engine answers: the native one where it is there and pays, else torch."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Literal

from mobillama_v.backends.native import library
from mobillama_v.config import DecoderConfig
from mobillama_v.errors import ConfigError

ENGINES = ("auto", "native", "torch")
_SMALL = 50_000_000  # parameters of a decoder


def bits_at_load(spec: DecoderConfig) -> Literal[8, 16]:
    """Bits to which a decoder of float weights is packed when it is loaded.

    Small ones lose nothing: what torch costs them is its overhead a step and not the bytes of their weights.
    """
    return 16 if is_small(spec) else 8


def is_small(spec: DecoderConfig) -> bool:
    """Whether a decoder is packed within a moment, and its weights are small whatever their bits."""
    return spec.num_params() <= _SMALL


def use_native(engine: str, spec: DecoderConfig, *, device: str, packed: bool) -> bool:
    """Whether the native engine answers.

    Args:
        engine: one of :data:`ENGINES`; ``auto`` is native on a CPU for packed models and for small ones.
        spec: the decoder's shape.
        device: torch's type of device.
        packed: whether the model folder holds a packed decoder.

    Raises:
        ConfigError: no such engine, or ``native`` where it cannot be.
    """
    if engine not in ENGINES:
        raise ConfigError(f"the engine {engine!r} is unknown; choose {', '.join(ENGINES[:-1])} or {ENGINES[-1]}.")
    if engine == "torch":
        return False
    reason = ""
    if device != "cpu":
        reason = f"it runs on a CPU and the device is {device}; choose --device cpu"
    elif spec.head_dim % 8:
        reason = f"its kernels want heads whose width is a multiple of 8, and this model's are {spec.head_dim} wide"
    elif library.missing():
        reason = library.missing()
    if engine == "native":
        if reason:
            raise ConfigError(f"the native engine cannot be used: {reason}, or choose --engine torch.")
        return True
    wanted = device == "cpu" and (packed or is_small(spec))
    if wanted and reason and reason == library.missing():
        _tell(f"note: torch answers, which is slower: the native engine is not here ({reason}).")
    return wanted and not reason


@lru_cache
def _tell(message: str) -> None:
    """Say it once in a process: on stderr, unless the program has a logger of its own."""
    logging.getLogger("mobillama_v").warning(message)

"""MobiLlama-V: a CLIP image tower, a projector and a MobiLlama decoder whose one feed-forward network all layers share.

The names below load what they need when they are first used, so that ``import mobillama_v`` stays cheap. The import
also registers the model with transformers' Auto classes, at the moment transformers itself is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from mobillama_v.errors import needs
from mobillama_v.hf.register import register

__version__ = "0.1.0"

_HOMES = {
    "MobiLlamaConfig": "hf.configuration",
    "MobiLlamaVConfig": "hf.configuration",
    "MobiLlamaForCausalLM": "hf.modeling",
    "MobiLlamaVForConditionalGeneration": "hf.modeling",
    "MobiLlamaVProcessor": "hf.processing",
    "MobiLlamaVImageProcessor": "hf.image_processing",
    "MobiLlamaVError": "errors",
    "load": "loading",
    "Assistant": "assistant",
    "Chat": "assistant",
    "Reply": "assistant",
    "Sampling": "sampling",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs(name):
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register()

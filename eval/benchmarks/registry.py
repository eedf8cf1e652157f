"""The benchmarks by name."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from mobillama_v.errors import ConfigError
from mobillama_v.eval.benchmarks.base import Benchmark

_CLASSES = {"gqa": "GQA", "scienceqa": "ScienceQA", "textvqa": "TextVQA", "mme": "MME", "custom": "Custom"}

NAMES: tuple[str, ...] = tuple(_CLASSES)
"""Every benchmark; ``custom`` is a user's own question file."""
PUBLIC: tuple[str, ...] = tuple(name for name in NAMES if name != "custom")
"""The benchmarks of the paper's table, in its order."""


def get(name: str, **options: Any) -> Benchmark:
    """Make a benchmark; the options are the fields of its class.

    Raises:
        ConfigError: an unknown name or option, or a value that an option does not take.
    """
    if name not in _CLASSES:
        raise ConfigError(f"there is no benchmark {name!r}; use one of {', '.join(NAMES)}.")
    made = getattr(importlib.import_module(f"mobillama_v.eval.benchmarks.{name}"), _CLASSES[name])
    known = {field.name for field in dataclasses.fields(made)}
    for option in options:
        if option not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"the benchmark {name} has no option {option!r}; its options are: {takes}.")
    return made(**options)

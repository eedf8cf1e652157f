"""Checks that the dataclasses of a configuration share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import isfinite
from typing import Any

from mobillama_v.errors import ConfigError


def check(condition: bool, message: str) -> None:
    """Raise a :class:`ConfigError` that says ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_TYPES: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", _is_whole),
    "float": ("a finite number", lambda value: _is_whole(value) or (isinstance(value, float) and isfinite(value))),
    "str": ("a text", lambda value: isinstance(value, str)),
    "str | None": ("a text or null", lambda value: value is None or isinstance(value, str)),
}


def check_types(part: Any) -> None:
    """Refuse a value that is not of its field's type: a ``config.json`` may hold anything."""
    for each in dataclasses.fields(part):
        if each.type in _TYPES:
            wanted, fits = _TYPES[each.type]
            value = getattr(part, each.name)
            check(fits(value), f"{each.name} must be {wanted}, not {value!r}.")

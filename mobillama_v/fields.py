"""Checks that the dataclasses of a configuration share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from math import inf, isfinite
from typing import Any, TypeAlias

from mobillama_v.errors import ConfigError


def check(condition: bool, message: str) -> None:
    """Raise a :class:`ConfigError` that says ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def parse_json(text: str | bytes) -> Any:
    """``json.loads``, for files and texts of strangers.

    Raises:
        ValueError: it is no JSON, or lists in it are nested so deeply that Python cannot read them.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(value: Any) -> str:
    """A value as a message shows it: ``repr``, cut to what a sentence can hold."""
    if isinstance(value, (list, tuple, dict)) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of more than 4,300 digits, a list in a list in a list
        return f"a value of type {type(value).__name__} that is too large to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether it is a number, neither infinite nor larger than a float can be."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    except OverflowError:
        return False


def is_text(value: Any) -> bool:
    """Whether it is a text that can be a file's name: without NUL and without halves of characters."""
    try:
        return isinstance(value, str) and "\0" not in value and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


_SHOWN = 80
Limit: TypeAlias = float
"""A number, or infinity for none."""
_TYPES: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", is_whole),
    "float": ("a finite number", is_finite),
    "Limit": ("a number, or infinite", lambda value: is_finite(value) or value == inf),
    "int | None": ("a whole number or null", lambda value: value is None or is_whole(value)),
    "str": ("a text", is_text),
    "str | None": ("a text or null", lambda value: value is None or is_text(value)),
    "tuple[str, ...]": ("a tuple of texts", lambda value: isinstance(value, tuple) and all(map(is_text, value))),
}


def check_types(part: Any) -> None:
    """Refuse a value that is not of its field's type: a ``config.json`` may hold anything."""
    for each in dataclasses.fields(part):
        if each.type in _TYPES:
            wanted, fits = _TYPES[each.type]
            value = getattr(part, each.name)
            check(fits(value), f"{each.name} must be {wanted}, not {shown(value)}.")

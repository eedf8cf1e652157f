"""Texts made harmless where they are shown: in HTML, escaped by construction, and in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_VOID = frozenset({"img", "input", "link", "meta", "br"})


class Html(str):
    """Text that is HTML already: only what :func:`tag` made is taken as it is."""


def text(value: str) -> Html:
    """Escaped text; what no UTF-8 file can hold is replaced."""
    import html  # which describing a picture does not need

    return Html(html.escape(value.encode("utf-8", "replace").decode(), quote=True))


def tag(name: str, /, *children: str | Html, **attributes: str | bool) -> Html:
    """An element.

    Args:
        name: of the element.
        children: texts, which are escaped, and elements.
        attributes: their values are escaped; True is an attribute without a value and False none. A final underscore of
            a name is dropped (``class_``), others are hyphens.
    """
    opened = name
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            opened += f" {key}"
        elif value is not False:
            opened += f' {key}="{text(str(value))}"'
    if name in _VOID:
        return Html(f"<{opened}>")
    return Html(f"<{opened}>{join(children)}</{name}>")


def join(parts: Iterable[str | Html]) -> Html:
    """Texts and elements one after another."""
    return Html("".join(part if isinstance(part, Html) else text(part) for part in parts))


def printable(text: str) -> str:
    """``text`` without the control characters that could drive a terminal; newlines and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)

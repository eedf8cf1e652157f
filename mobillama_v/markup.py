"""HTML whose texts are escaped by construction: only what :func:`tag` made is taken as it is."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = frozenset({"img", "input", "link", "meta", "br"})


class Html(str):
    """Text that is HTML already."""


def text(value: str) -> Html:
    """Escaped text; what no UTF-8 file can hold is replaced."""
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

"""Pictures that are written as text: data URLs (RFC 2397) and base64, as clients really send them."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote, unquote_to_bytes

from mobillama_v.errors import ImageError

_BLANKS = re.compile(r"\s+")
_URL_SAFE = str.maketrans("-_", "+/")


def is_data_url(text: str) -> bool:
    """Whether ``text`` is a data URL rather than a path."""
    return text[:5].lower() == "data:"


def decode_data_url(url: str) -> bytes:
    """The bytes of a data URL; its media type is not believed.

    Raises:
        ImageError: it has no comma, or its base64 cannot be decoded.
    """
    head, comma, data = url.partition(",")
    if not comma:
        raise ImageError("the data URL has no comma: write data:image/png;base64, and the picture's base64")
    return decode_base64(data) if head.lower().endswith(";base64") else unquote_to_bytes(data)


def decode_base64(text: str) -> bytes:
    """The bytes that base64 stands for: also in lines, URL-safe, percent-encoded or without padding.

    Raises:
        ImageError: it is no base64.
    """
    letters = _BLANKS.sub("", unquote(text) if "%" in text else text).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"a picture's base64 text cannot be decoded ({error}): encode it again") from error

"""Pictures that are written as text: data URLs (RFC 2397) and base64, as clients really send them."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

from mobillama_v.errors import ImageError

_BLANKS = b" \t\n\r\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


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
    try:
        letters = unquote_to_bytes(text).translate(_URL_SAFE, _BLANKS).rstrip(b"=")
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"a picture's base64 text cannot be decoded ({error}): encode it again") from error

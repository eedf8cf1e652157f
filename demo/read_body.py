"""Reading the JSON of a request, within bounds of bytes, time, and values."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from mobillama_v.demo.limits import HeldBytes
from mobillama_v.demo.protocol import RequestError

BODY_SECONDS = 60.0
"""For a request to arrive."""
MAX_VALUES = 200_000
"""Values and escaped characters in the JSON of a request: Python keeps about a hundred bytes for each value."""


class Received:
    """The bytes of a request, of which ``size`` are ``owner``'s among the ``held`` ones."""

    def __init__(self, owner: str, held: HeldBytes) -> None:
        self.owner, self.held, self.size, self.data = owner, held, 0, bytearray()

    def hold(self, size: int) -> None:
        """Count ``size`` more bytes.

        Raises:
            BusyError: all requests hold too many bytes.
        """
        self.held.take(self.owner, size)
        self.size += size

    def json(self) -> Any:
        """The JSON, to be read once; errors as of :func:`read_json`."""
        data, self.data = self.data, bytearray()
        return read_json(data)


@asynccontextmanager
async def received(request: Any, owner: str, most: int, held: HeldBytes) -> AsyncIterator[Received]:
    """Receive a request of at most ``most`` bytes, which ``owner`` holds until the block ends.

    Raises:
        RequestError: it is not JSON by its type, has too many bytes, or took too long to arrive.
        BusyError: all requests hold too many bytes.
    """
    if not request.headers.get("content-type", "").lower().startswith("application/json"):
        raise RequestError("The request's content type must be application/json.", status=415)
    large = RequestError(f"The request has more than the {most:,} bytes allowed.", status=413, code="request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise large
    body = Received(owner, held)

    async def receive() -> None:
        async for chunk in request.stream():
            body.hold(len(chunk))
            body.data.extend(chunk)
            if body.size > most:
                raise large

    try:
        try:
            await asyncio.wait_for(receive(), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise RequestError("The request took too long to arrive.", status=408) from None
        yield body
    finally:
        held.give_back(owner, body.size)


def read_json(data: bytearray) -> Any:
    """The JSON in ``data``.

    Raises:
        RequestError: it is not valid JSON in UTF-8, or has too many values.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES or data.count(b"\\u") > MAX_VALUES:
        message = f"The request has more than {MAX_VALUES:,} values or escaped characters."
        raise RequestError(message, status=413, code="request_too_large")
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:  # no other text can hold half of a character
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RequestError("The request holds half a character (\\ud800 to \\udfff alone); remove it.") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The request is not valid JSON ({error}).") from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")

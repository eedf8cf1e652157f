"""Receiving a request, within bounds of bytes and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from mobillama_v.demo.limits import HeldBytes
from mobillama_v.demo.protocol import RequestError
from mobillama_v.demo.read_json import read_json

BODY_SECONDS = 60.0
"""For a request to arrive."""


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
async def received(
    request: Any, owner: str, most: int, held: HeldBytes, *, origins: Sequence[str] = ()
) -> AsyncIterator[Received]:
    """Receive a request of at most ``most`` bytes, which ``owner`` holds until the block ends.

    Its type need not be JSON's: ``curl -d`` calls everything a form.

    Args:
        request: Starlette's.
        owner: who sends it.
        most: its bytes.
        held: counts them.
        origins: of pages that may ask, ``*`` for any; others of other servers may not.

    Raises:
        RequestError: a page of another server sends it, it is a form of several parts, has too many bytes, or took
            too long to arrive.
        BusyError: all requests hold too many bytes.
    """
    _check_sender(request, origins)
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


def _check_sender(request: Any, origins: Sequence[str]) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        raise RequestError("The request is a form of several parts; send JSON.", status=415)
    # A browser asks the server before another one's page may send JSON (CORS). It sends other types without asking, and
    # then says which page they come from.
    origin = request.headers.get("origin")
    own = f"{request.url.scheme}://{request.headers.get('host', '')}"
    if kind != "application/json" and origin not in (None, own) and not {origin, "*"} & set(origins):
        message = f"A page of {origin[:100]!r} may ask only as application/json, where the server has --cors for it."
        raise RequestError(message, status=403, code="foreign_page")

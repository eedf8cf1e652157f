"""The server's socket, and the names that it answers to.

It is bound before a model is loaded, so that a port in use is reported at once.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Sequence
from typing import Any

from mobillama_v.errors import ConfigError


def bind_socket(host: str, port: int) -> socket.socket:
    """A listening TCP socket at ``host``; port 0 takes a free one.

    Raises:
        ConfigError: the address is not this machine's, or the port is in use or may not be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{host} port {port} cannot be listened at ({reason}); choose others.") from None
    return sock


def base_url(host: str, port: int) -> str:
    """The URL of a socket."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def served_hosts(sock: socket.socket, host: str, also: Sequence[str] = ()) -> frozenset[str] | None:
    """The names by which clients may address a server at ``sock``, which was asked for as ``host``; None: any.

    On loopback these are loopback's own and ``also``. Elsewhere any name will do, unless ``also`` gives some.
    """
    if not (also or ipaddress.ip_address(sock.getsockname()[0]).is_loopback):
        return None
    return frozenset({"localhost", "127.0.0.1", "::1", *(name.lower() for name in (host, *also))})


class HostMiddleware:
    """ASGI middleware that refuses requests by any name but ``hosts``.

    Else a web page could have its own name point at this machine, and read what is served here (DNS rebinding).
    """

    def __init__(self, app: Any, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        if _name_of(given) in self.hosts:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            message = f"The host {given[:100]!r} is not served here; start the server with --allow-host for it."
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": "unknown_host"}
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
        else:
            await send({"type": "websocket.close", "code": 1008})


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.rstrip(".").lower()

"""The server's socket. It is bound before a model is loaded, so that a port in use is reported at once."""

from __future__ import annotations

import socket

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

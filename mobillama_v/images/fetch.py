"""An image from an http(s) address, within bounds of size and time, and never from a private network.

A web address can come from someone else's list of pictures, so a request must not reach what only this machine can see:
each host is resolved once, every address it has must be public, and the connection goes to the address that was checked
(a name that resolves to something else a moment later gains nothing). Redirects are followed by the same rule. Proxies
from the environment are not used, for they would resolve the name themselves.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from mobillama_v.errors import ImageError

MAX_BYTES = 32 * 1024 * 1024
SECONDS = 20.0
"""Time for one image, redirects included."""
_REDIRECTS = 5
_CHUNK = 64 * 1024
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))


def is_url(text: str) -> bool:
    """Whether ``text`` is a web address rather than a path."""
    return text.lower().startswith(("http://", "https://"))


def fetch(url: str, *, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """The bytes at ``url``.

    Raises:
        ImageError: not an http(s) address, no such host, a host with an address that is not public, an answer other
            than 200, more than ``max_bytes``, or more than ``seconds``.
    """
    outcome: list[bytes | BaseException] = []

    def work() -> None:
        try:
            outcome.append(_follow(url, time.monotonic() + seconds, max_bytes))
        except BaseException as error:
            outcome.append(error)

    # Looking up a name has no time limit of its own, and headers may come a byte at a time: only this bounds the whole.
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(seconds)
    found = outcome[0] if outcome else TimeoutError()
    if isinstance(found, bytes):
        return found
    if isinstance(found, TimeoutError):
        raise ImageError(f"{url!r} took more than {seconds:g} s; download it first and give the file.") from None
    if isinstance(found, (OSError, http.client.HTTPException, ValueError)):
        raise ImageError(f"{url!r} cannot be fetched ({found}); check the address.") from found
    raise found


def _follow(url: str, deadline: float, max_bytes: int) -> bytes:
    current = url
    for _ in range(_REDIRECTS + 1):
        found = _request(current, deadline, max_bytes)
        if isinstance(found, bytes):
            return found
        current = urljoin(current, found)
    raise ImageError(f"{url!r} redirects more than {_REDIRECTS} times; give the address that it leads to.")


def _request(url: str, deadline: float, max_bytes: int) -> bytes | str:
    """The body at ``url``, or where it redirects to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ImageError(f"{url!r} is not an http or https address; give one, or a file.")
    connection = _connect(parts, deadline)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"User-Agent": "mobillama-v", "Accept": "image/*"})
        response = connection.getresponse()
        location = response.getheader("Location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return location
        if response.status != 200:
            raise ImageError(f"{url!r} answered {response.status} {response.reason}; check the address.")
        return _body(response, url, deadline, max_bytes)
    finally:
        connection.close()


def _connect(parts: SplitResult, deadline: float) -> http.client.HTTPConnection:
    assert parts.hostname is not None
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    connection = http.client.HTTPConnection(parts.hostname, port)  # writes the Host header; the socket is ours
    if secure:
        connection.default_port = 443
    sock = _dial(public_addresses(parts.hostname, port), port, deadline)
    connection.sock = ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname) if secure else sock
    return connection


def _dial(addresses: list[str], port: int, deadline: float) -> socket.socket:
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, port), timeout=_left(deadline) / 2)
        except OSError:
            continue
    return socket.create_connection((addresses[-1], port), timeout=_left(deadline))


def public_addresses(host: str, port: int) -> list[str]:
    """All addresses of ``host``.

    Raises:
        ImageError: one of them is not public.
        OSError: there is no such host.
    """
    addresses = list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    for address in addresses:
        if not is_public(address):
            raise ImageError(
                f"{host!r} is at {address}, which is not a public address; give a picture there as a file instead."
            )
    return addresses


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet; one of IPv6 that wraps one of IPv4 does not.

    What the wrapped one would reach depends on routers and translators, whatever it is.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # an IPv6 address with a zone is a local one
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip.ipv4_mapped or ip.sixtofour or ip.teredo or any(ip in network for network in _NAT64)
    ):
        return False
    return ip.is_global and not ip.is_multicast


def _body(response: http.client.HTTPResponse, url: str, deadline: float, max_bytes: int) -> bytes:
    body = bytearray()
    while chunk := response.read1(_CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise ImageError(f"{url!r} is more than {max_bytes / 1e6:.0f} MB; download it first and make it smaller.")
        _left(deadline)
    return bytes(body)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left

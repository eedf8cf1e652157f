"""Web addresses: only public ones, only so much, only so long."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from mobillama_v.errors import ImageError
from mobillama_v.images import fetch as module
from mobillama_v.images.fetch import fetch, is_public, is_url


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self) -> None:
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        if self.path == "/slow-header":
            time.sleep(5)
            return
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        if self.path == "/trickle":
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(b"x" * 100_000)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1" or is_public(address))


def test_private_addresses_are_refused(server: str) -> None:
    with pytest.raises(ImageError, match=r"127\.0\.0\.1, which is not a public address"):
        fetch(server)
    with pytest.raises(ImageError, match="not a public address"):
        fetch(server.replace("127.0.0.1", "localhost"))


@pytest.mark.usefixtures("loopback_is_public")
def test_body_and_redirects(server: str) -> None:
    assert fetch(f"{server}/picture") == b"x" * 100_000
    assert fetch(f"{server}/to?/picture") == b"x" * 100_000
    for target, message in (
        ("http://127.0.0.2/x", "127.0.0.2, which is not a public"),
        ("http://169.254.169.254/latest", "169.254.169.254, which is not a public"),
        ("file:///etc/passwd", "not an http or https address"),
    ):
        with pytest.raises(ImageError, match=message):
            fetch(f"{server}/to?{target}")
    with pytest.raises(ImageError, match="redirects more than 5 times"):
        fetch(f"{server}/to?/to?/to?/to?/to?/to?/picture")


@pytest.mark.usefixtures("loopback_is_public")
def test_bounds(server: str) -> None:
    with pytest.raises(ImageError, match="answered 404"):
        fetch(f"{server}/missing")
    assert len(fetch(f"{server}/picture", max_bytes=100_000)) == 100_000
    with pytest.raises(ImageError, match="more than 0 MB"):
        fetch(f"{server}/picture", max_bytes=99_999)
    for path in ("slow-header", "trickle"):
        with pytest.raises(ImageError, match=r"took more than 0\.3 s"):
            fetch(f"{server}/{path}", seconds=0.3)


def test_addresses_that_cannot_be() -> None:
    for url in ("http://", "http:///x", "ftp://example.org/x", "http://exa mple/", "http://host:99999/", "http://[::1"):
        with pytest.raises(ImageError):
            fetch(url)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1"),
        *(
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "64:ff9b:1::808:808",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:0:0:0:0:0:80ff:fffe",
        ),
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_public(address: str) -> None:
    assert is_public(address)


def test_what_is_a_url() -> None:
    assert is_url("http://a/b") and is_url("HTTPS://a")
    assert not is_url("http.jpg") and not is_url("/http://x") and not is_url("ftp://x")

"""While the server digests the worst requests that it takes, small ones of another client go on.

The aim is 3 times the quiet time, with a core for the server; what is printed (run this file alone) measures that.
Other tests run beside this one, and its attacker and its client need cores too, so what fails is a stall.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import serving
from mobillama_v.demo.limits import Limits
from mobillama_v.demo.workers import memory_bound
from serving import Running, data_url, encoded

SMALL = {"model": "nano", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
ROUNDS = 9
STALL = 10  # times the quiet time


def body(*content: Any) -> bytes:
    said = {"role": "user", "content": list(content)}
    return json.dumps({"model": "nano", "messages": [said], "max_tokens": 1}).encode()


def text(size: int) -> bytes:
    return body({"type": "text", "text": "a" * size})


def pictures(count: int, side: int, kind: str) -> bytes:
    made = encoded(Image.linear_gradient("L").resize((side, side)).convert("RGBA"), kind)
    assert len(made) < 10_000_000
    made += b" " * (-len(made) % 3)
    return body(*[{"type": "image_url", "image_url": {"url": f"{data_url(made)}MARKMARK"}} for _ in range(count)])


WORST: dict[str, Callable[[], bytes]] = {
    "longest text": lambda: text(40_000_000),
    "longest text that is tokenized": lambda: text(1024 * 15 - 300),
    "largest pictures": lambda: pictures(2, 7000, "PNG"),
    "most bytes that are no pictures": lambda: body(
        *[{"type": "image_url", "image_url": {"url": "data:;base64," + "A" * 5_000_000}}] * 8
    ),
    "deepest JSON": lambda: b"[" * 40_000_000,
    "most values": lambda: b"[" + b"0," * 199_000 + b"0]",
    "most values, and more": lambda: b"[" + b"0," * 19_000_000 + b"0]",
    "most escapes": lambda: b'["' + rb"\ud83d\ude00" * 99_000 + b'"]',
    "most escapes, and more": lambda: b'["' + rb"\ud83d\ude00" * 3_300_000 + b'"]',
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving.running("serve", Path("nano")) as started:
        yield started


def seconds(server: Running, path: str = "/v1/chat/completions") -> float:
    start = time.perf_counter()
    if path == "/health":
        assert httpx.get(server.url + path, timeout=60).status_code == 200
    else:
        assert httpx.post(server.url + path, json=SMALL, timeout=60).status_code == 200
    return time.perf_counter() - start


ATTACKER = """
import sys, urllib.error, urllib.request
data = open(sys.argv[2], "rb").read()
for number in range(10**6):
    new = data.replace(b"MARKMARK", b"%08d" % number)  # a picture that was not shown before
    asked = urllib.request.Request(sys.argv[1], new, {"Content-Type": "application/json"})
    try:
        print(urllib.request.urlopen(asked, timeout=120).status, flush=True)
    except urllib.error.HTTPError as error:
        print(error.code, flush=True)
"""


@contextlib.contextmanager
def asking(server: Running, data: Path) -> Iterator[list[str]]:
    """Ask the same again and again meanwhile, from another process; the statuses of the answers."""
    args = [sys.executable, "-c", ATTACKER, f"{server.url}/v1/chat/completions", str(data)]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        statuses = [process.stdout.readline()]
        threading.Thread(target=lambda: statuses.extend(process.stdout or ()), daemon=True).start()
        try:
            yield statuses
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORST)
def test_a_small_request_beside_the_worst(
    server: Running, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "body.json"
    data.write_bytes(WORST[kind]())
    seconds(server)
    beside, health, most = list[float](), list[float](), 0
    quiet = [seconds(server) for _ in range(ROUNDS)]
    before = server.rss()
    with asking(server, data) as statuses:
        while len(beside) < ROUNDS or (len(statuses) < 2 and len(beside) < 50):
            beside.append(seconds(server))
            health.append(seconds(server, "/health"))
            most = max(most, server.rss())
    quiet += [seconds(server) for _ in range(ROUNDS)]
    ratio = statistics.median(beside) / statistics.median(quiet)
    with capsys.disabled():
        print(
            f"\n{kind}: {statistics.median(quiet) * 1e3:.0f} ms quiet, {ratio:.1f} times that beside it; health "
            f"{max(health) * 1e3:.0f} ms; {before / 1e6:.0f} to {most / 1e6:.0f} MB; {len(statuses)} x {set(statuses)}"
        )
    assert ratio < STALL
    assert statistics.median(health) < STALL * statistics.median(quiet)
    assert most < before + memory_bound(Limits())


@pytest.mark.slow
def test_bodies_that_never_end_hold_no_place(server: Running) -> None:
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    quiet = statistics.median(seconds(server) for _ in range(ROUNDS))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(100):  # more than the places that there are
            half = stack.enter_context(socket.create_connection(address))
            half.sendall(head + b"Content-Length: 1000\r\n\r\n{")
        beside = statistics.median(seconds(server) for _ in range(ROUNDS))
    assert beside < STALL * quiet

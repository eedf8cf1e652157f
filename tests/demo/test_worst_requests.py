"""While the server digests the worst requests that it takes, small ones of another client go on.

They may take 3 times as long as in a quiet server beside a process that only computes, for the attacker takes a core,
too. Other tests may run beside this one, so it tries three times.
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
MOST = 3  # times the quiet time
STALL = 10


def body(*content: Any) -> bytes:
    said = {"role": "user", "content": list(content)}
    return json.dumps({"model": "nano", "messages": [said], "max_tokens": 1}).encode()


def text(size: int, letter: str = "a") -> bytes:
    """A request with a text of ``letter``, which is written as JSON has it."""
    return body({"type": "text", "text": "MARK"}).replace(b"MARK", letter.encode() * size)


def pictures(count: int, side: int, kind: str) -> bytes:
    made = encoded(Image.linear_gradient("L").resize((side, side)).convert("RGBA"), kind)
    assert len(made) < 10_000_000
    made += b" " * (-len(made) % 3)
    return body(*[{"type": "image_url", "image_url": {"url": f"{data_url(made)}MARKMARK"}} for _ in range(count)])


WORST: dict[str, Callable[[], bytes]] = {
    "longest text": lambda: text(40_000_000),
    "longest text of two-byte letters": lambda: text(20_000_000, "é"),
    "most escaped letters": lambda: text(1, "a" * 38_000_000 + r"\n" * 1_100_000),
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
    for _ in range(3):
        beside, health, most = list[float](), list[float](), 0
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as computing:
            quiet = [seconds(server) for _ in range(2 * ROUNDS)]
            computing.kill()
        before = server.rss()
        with asking(server, data) as statuses:
            while len(beside) < ROUNDS or (len(statuses) < 2 and len(beside) < 50):
                beside.append(seconds(server))
                health.append(seconds(server, "/health"))
                most = max(most, server.rss())
        ratio = statistics.median(beside) / statistics.median(quiet)
        found = f"{ratio:.1f} times {statistics.median(quiet) * 1e3:.0f} ms; health {max(health) * 1e3:.0f} ms"
        with capsys.disabled():
            memory = f"{before / 1e6:.0f} to {most / 1e6:.0f} MB"
            print(f"\n{kind}: {found}; {memory}; {len(statuses)} x {set(statuses)}")
        assert most < before + memory_bound(Limits())
        if ratio < MOST and max(health) < 1:
            return
    pytest.fail(found)


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

"""Many clients of `nano` at once: right answers to all good requests, whatever the others do, and nothing left over.

``MOBILLAMA_V_SOAK_SECONDS=1800`` makes the soak a long one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
from mobillama_v.generate import Sampling
from mobillama_v.loading import load
from nano.scenes import draw, sample_scene
from serving import Running, data_url, encoded, question

CLIENTS, REQUESTS, TOKENS = 16, 20, 24
SOAK_SECONDS = float(os.environ.get("MOBILLAMA_V_SOAK_SECONDS", "40"))
Expected = dict[tuple[int, str], str]
QUESTIONS = ("What is this?", "Describe the image.", "What color is it?")


def pictures() -> list[bytes]:
    """Ten drawings of several sizes and kinds, the same ones every time."""
    made = []
    for i in range(10):
        scene = sample_scene(random.Random(i), ("single", "few", "word")[i % 3])
        image = draw(scene).resize((200 + 60 * i, 150 + 40 * i))
        made.append(encoded(image, ("PNG", "JPEG", "WEBP")[i % 3]))
    return made


async def client(
    base: str, number: int, shown: list[bytes], expected: Expected, goes_on: Callable[[int], bool]
) -> Counter[str]:
    """Ask a client's questions one after another while it ``goes_on``; how many of them ended how."""
    rng, ends = random.Random(number), Counter[str]()
    url = f"{base}/v1/chat/completions"
    async with httpx.AsyncClient(timeout=120) as http:
        for turn in itertools.takewhile(goes_on, itertools.count()):
            i, text = rng.randrange(len(shown)), rng.choice(QUESTIONS)
            body: dict[str, Any] = {"model": "nano", "max_tokens": TOKENS}
            kind = "good"
            if (number * REQUESTS + turn) % 10 == 0:
                kind = rng.choice(("broken", "canceled", "malformed"))
            data = shown[i][: len(shown[i]) // 3] if kind == "broken" else shown[i]
            body["messages"] = [question(text, data_url(data))]
            body["stream"] = streamed = kind == "canceled" or rng.random() < 0.5
            if kind == "malformed":
                body["temperature"] = "hot"
            if kind == "canceled":
                with contextlib.suppress(httpx.HTTPError):  # also where nobody is there
                    async with http.stream("POST", url, json=body | {"max_tokens": 400}) as answer:
                        async for _ in answer.aiter_lines():
                            break
            else:
                answer = await asked(http, url, body, ends)
                if kind == "good":
                    assert answer.status_code == 200, answer.text
                    found = text_of(answer.text) if streamed else answer.json()["choices"][0]["message"]["content"]
                    assert found == expected[i, text], (i, text)
                else:
                    assert answer.status_code == 400, answer.text
            ends[kind] += 1
    return ends


async def asked(http: httpx.AsyncClient, url: str, body: dict[str, Any], ends: Counter[str]) -> httpx.Response:
    """Ask, and ask again as long as the queue is full, as the server says, or there is no server."""
    while True:
        try:
            answer = await http.post(url, json=body)
        except (httpx.NetworkError, httpx.RemoteProtocolError):  # also one that the server's end has cut off
            ends["nobody there"] += 1
        else:
            if answer.status_code not in (429, 503):
                return answer
            ends["turned away"] += 1
        await asyncio.sleep(0.2)


def text_of(events: str) -> str:
    """The whole text of a streamed answer."""
    parts = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    return "".join(part["choices"][0]["delta"].get("content", "") for part in parts)


async def all_clients(
    base: str, shown: list[bytes], expected: Expected, goes_on: Callable[[int], bool] = lambda turn: turn < REQUESTS
) -> Counter[str]:
    found = await asyncio.gather(*(client(base, n, shown, expected, goes_on) for n in range(CLIENTS)))
    return sum(found, Counter())


def answers(shown: list[bytes]) -> Expected:
    model = load("nano", device="cpu")
    found = {
        (i, text): model.ask([data], text, Sampling(TOKENS)).text for i, data in enumerate(shown) for text in QUESTIONS
    }
    assert len(set(found.values())) > 20, "answers that are all alike show nothing"
    return found


def values(server: Running) -> dict[str, float]:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def rss_at_rest(server: Running) -> int:
    deadline = time.monotonic() + 20
    while values(server)["mobillama_v_running"] or values(server)["mobillama_v_waiting"]:
        assert time.monotonic() < deadline, "something still runs"
        time.sleep(0.1)
    return server.rss()


@pytest.mark.slow
@pytest.mark.parametrize(
    "queue", [("--waiting", "64", "--waiting-each", "64"), ("--waiting", "4", "--waiting-each", "4")]
)
def test_load(queue: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = pictures()
    expected = answers(shown)
    with serving.running("serve", Path("nano"), *queue, TMPDIR=str(tmp_path)) as server:
        asyncio.run(all_clients(server.url, shown, expected))  # libraries are loaded, threads started, caches full
        before, start, used = server.rss(), time.monotonic(), server.cpu()
        ends = asyncio.run(asyncio.wait_for(all_clients(server.url, shown, expected), 300))
        seconds, used = time.monotonic() - start, server.cpu() - used
        after = rss_at_rest(server)
        process = server.process
        assert "Traceback" not in "".join(server.lines), "".join(server.lines)
    assert process.returncode in (0, -15)
    assert sum(ends[kind] for kind in ("good", "broken", "canceled", "malformed")) == CLIENTS * REQUESTS
    assert ends["good"] == CLIENTS * REQUESTS * 9 // 10
    assert (ends["turned away"] > 0) == (queue[1] == "4") and not ends["nobody there"]
    with capsys.disabled():
        print(
            f"\n{dict(ends)} in {seconds:.1f} s, {used:.1f} s of CPU; memory {before / 1e6:.0f} -> {after / 1e6:.0f} MB"
        )
    assert after < 1.05 * before
    assert list(tmp_path.iterdir()) == [], "files were left behind"


@pytest.mark.slow
def test_soak_with_a_restart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The server ends in the middle, as for an update, and another begins at its port; clients ask again."""
    shown = pictures()
    expected = answers(shown)
    options = ("--waiting", "64", "--waiting-each", "64", "--grace", "60")

    async def soak(url: str, seconds: float) -> Counter[str]:
        end = time.monotonic() + seconds
        return await all_clients(url, shown, expected, lambda _: time.monotonic() < end)

    async def soak_and_restart(first: Running, stack: contextlib.ExitStack) -> tuple[Counter[str], Running]:
        def restarted() -> Running:
            stack.pop_all().close()
            return stack.enter_context(serving.running("serve", Path("nano"), *options, "--port", port, TMPDIR=temp))

        port, temp = first.url.rpartition(":")[2], str(tmp_path)
        asking = asyncio.create_task(soak(first.url, SOAK_SECONDS))
        await asyncio.sleep(SOAK_SECONDS / 2)
        second = await asyncio.to_thread(restarted)
        return await asking, second

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serving.running("serve", Path("nano"), *options, TMPDIR=str(tmp_path)))
        ends, second = asyncio.run(soak_and_restart(first, stack))
        before = rss_at_rest(second)
        ends += asyncio.run(soak(second.url, SOAK_SECONDS / 8))
        after = rss_at_rest(second)
        for server in (first, second):
            assert "Traceback" not in "".join(server.lines), "".join(server.lines)
    assert first.process.returncode in (0, -15) and second.process.returncode in (0, -15)
    with capsys.disabled():
        print(f"\n{SOAK_SECONDS:.0f} s: {dict(ends)}; memory {before / 1e6:.0f} -> {after / 1e6:.0f} MB")
    assert ends["nobody there"] > 0 and ends["good"] > 8 * ends["broken"]
    assert after < 1.05 * before
    assert list(tmp_path.iterdir()) == [], "files were left behind"

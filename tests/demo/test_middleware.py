"""A browser is known by its cookie, whatever other cookies it sends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from mobillama_v.demo import middleware as module
from mobillama_v.demo.middleware import AccessMiddleware
from mobillama_v.demo.sessions import COOKIE, Sessions

TOKEN = Sessions.new_token()


def visit(tmp_path: Path, *cookies: str) -> tuple[str, bool]:
    """The token that the application is told, and whether the browser was given one."""
    told: list[str] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.append(HTTPConnection(scope).cookies[COOKIE])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"cookie", cookie.encode()) for cookie in cookies]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    asyncio.run(AccessMiddleware(app, Sessions(tmp_path, shared=tmp_path))(scope, None, send))
    return told[0], any(name == b"set-cookie" for name, _ in sent[0]["headers"])


@pytest.mark.parametrize("other", ['odd={"a": 1}; ', "two words=x y; ", "nothing; ", "a[1]=2; ", ""])
def test_known_among_the_cookies_of_others(tmp_path: Path, other: str) -> None:
    assert visit(tmp_path, f"{other}{COOKIE}={TOKEN}") == (TOKEN, False)
    assert visit(tmp_path, other, f"{COOKIE}={TOKEN}") == (TOKEN, False)


@pytest.mark.parametrize("cookies", [(), ("other=1",), (f"{COOKIE}=short",), (f"{COOKIE}={'x' * 65}",)])
def test_a_newcomer_gets_a_token(tmp_path: Path, cookies: tuple[str, ...]) -> None:
    token, given = visit(tmp_path, *cookies)
    assert given and len(token) == len(TOKEN) and token != TOKEN


def upload(tmp_path: Path, room: int, *chunks: bytes) -> list[int]:
    """The statuses of an upload that comes in ``chunks``, where ``room`` bytes are left beside a file of 10 bytes."""
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "file").write_bytes(b"0123456789")
    statuses: list[int] = []
    parts: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"[]"})

    async def receive() -> Any:
        return parts.pop(0) if parts else {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    sessions = Sessions(tmp_path / "uploads", shared=tmp_path, max_bytes=room + 10)
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": []}
    middleware = AccessMiddleware(app, sessions)
    for _ in range(2):  # what has come is forgotten with the request
        parts[:] = [{"type": "http.request", "body": each, "more_body": True} for each in chunks]
        asyncio.run(middleware(scope, receive, send))
    return statuses


@pytest.mark.parametrize(("room", "statuses"), [(100, [200, 200]), (50, [200, 200]), (49, [413, 413]), (0, [413, 413])])
def test_the_uploads_of_all_are_bounded(tmp_path: Path, room: int, statuses: list[int]) -> None:
    assert upload(tmp_path, room, b"x" * 20, b"x" * 30) == statuses


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join"])
def test_a_request_that_comes_byte_by_byte_ends_in_time(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BODY_SECONDS", 0.3)
    statuses: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    async def receive() -> Any:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    middleware = AccessMiddleware(app, Sessions(tmp_path, shared=tmp_path))
    asyncio.run(asyncio.wait_for(middleware(scope, receive, send), 60))
    assert statuses == [408]


def test_after_an_upload_has_come_its_answer_may_take_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BODY_SECONDS", 0.1)
    parts: list[dict[str, Any]] = [{"type": "http.request", "body": b"x", "more_body": False}]
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([(await receive())["type"], (await receive())["type"]])

    async def receive() -> Any:
        if parts:
            return parts.pop()
        await asyncio.sleep(0.3)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": []}
    asyncio.run(AccessMiddleware(app, Sessions(tmp_path, shared=tmp_path))(scope, receive, send))
    assert seen == ["http.request", "http.disconnect"]

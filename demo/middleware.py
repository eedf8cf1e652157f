"""Access control in front of Gradio: a file is served to its owner only, and unused parts of Gradio are closed.

Gradio serves whatever lies in its upload folder to anybody who knows the path, fetches web addresses for its clients,
and makes components that a request describes. Here a request may name a file only where that browser has uploaded it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import HTTPConnection

from mobillama_v.demo.sessions import COOKIE, Sessions

_MAX_BODY = 4_000_000  # of a call: a conversation's words and the names of its pictures
_BODY_SECONDS = 60.0  # for a request to arrive
_TOO_LATE = "The request took too long to arrive."
_CALL_PATHS = ("/queue/join", "/run/", "/api/", "/call/")
_CLOSED_PATHS = (
    *(
        "/proxy=",
        "/stream",
        "/deep_link",
        "/process_recording",
        "/component_server",
        "/custom_component",
        "/monitoring",
    ),
    *("/vibe", "/undo-vibe", "/dev/reload", "/run-history", "/runs", "/profiling", "/file/"),
)


class _NoRoomError(Exception):
    """An upload is larger than the room that is left."""


class _TooLateError(Exception):
    """A request took too long to arrive."""


class AccessMiddleware:
    """ASGI middleware around Gradio's application."""

    def __init__(self, app: Any, sessions: Sessions) -> None:
        self.app, self.sessions = app, sessions
        self._arriving = 0  # bytes of uploads that have come so far

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        token, known = _token(scope), True
        if not token:
            token, known = Sessions.new_token(), False
            scope = {**scope, "headers": [*scope["headers"], (b"cookie", f"{COOKIE}={token}".encode())]}
        sending = send if known else _with_cookie(token, _is_secure(scope), send)
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")).removeprefix("/gradio_api")
        if path.startswith(_CLOSED_PATHS):
            await _refuse(sending, 404, "There is nothing here.")
        elif path.startswith("/file="):
            if self.sessions.may_read(token, path.removeprefix("/file=")):
                await self.app(scope, receive, sending)
            else:
                await _refuse(sending, 403, "This file is not yours.")
        elif path.rstrip("/") == "/upload":
            if self.sessions.full(token):
                await _refuse(sending, 413, "You have uploaded too many files; reload the page to begin anew.")
            else:
                await self._upload(scope, receive, self._recording(token, sending))
        elif scope["method"] == "POST" and path.startswith(_CALL_PATHS):
            await self._call(scope, receive, sending, token)
        else:
            await self.app(scope, receive, sending)

    async def _upload(self, scope: Any, receive: Any, send: Any) -> None:
        room, came = await asyncio.to_thread(self.sessions.room), 0
        receive = _in_time(receive)

        async def counted() -> Any:
            nonlocal came
            message = await receive()
            size = len(message.get("body", b""))
            came += size
            self._arriving += size
            if self._arriving > room:
                raise _NoRoomError
            return message

        try:
            await self.app(scope, counted, send)
        except _NoRoomError:
            await _refuse(send, 413, "There is no room for more uploads; come back later.")
        except _TooLateError:
            await _refuse(send, 408, _TOO_LATE)
        finally:
            self._arriving -= came

    async def _call(self, scope: Any, receive: Any, send: Any, token: str) -> None:
        body, arriving = bytearray(), _in_time(receive)
        while True:
            try:
                message = await arriving()
            except _TooLateError:
                await _refuse(send, 408, _TOO_LATE)
                return
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > _MAX_BODY:
                await _refuse(send, 413, "The conversation is too long; clear it.")
                return
            if not message.get("more_body"):
                break
        try:
            allowed = self._is_allowed(json.loads(bytes(body)), token)
        except (ValueError, RecursionError):
            allowed = False
        if not allowed:
            await _refuse(send, 403, "The request names a file that is not yours.")
            return
        given = [False]

        async def replay() -> Any:
            if given[0]:
                return await receive()
            given[0] = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, replay, send)

    def _is_allowed(self, value: Any, token: str) -> bool:
        """Whether all files that JSON names are this browser's, and none of it describes a component."""
        if isinstance(value, list):
            return all(self._is_allowed(each, token) for each in value)
        if not isinstance(value, dict):
            return True
        if "component" in value or value.get("type") == "component":
            return False
        if str(value.get("url", "")).startswith("data:"):  # would become a file that is nobody's
            return False
        if "path" in value and not (isinstance(value["path"], str) and self.sessions.may_read(token, value["path"])):
            return False
        return all(self._is_allowed(each, token) for each in value.values())

    def _recording(self, token: str, send: Any) -> Any:
        """A ``send`` that records which files an upload has made."""
        body = bytearray()

        async def recording(message: Any) -> None:
            if message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    self.sessions.upload(token, _paths(bytes(body)))
            await send(message)

        return recording


def _in_time(receive: Any) -> Any:
    """A ``receive`` of a request that has to arrive whole in time; what comes after it may take any time.

    Raises:
        _TooLateError: the time is over, when called.
    """
    loop = asyncio.get_running_loop()
    end, whole = loop.time() + _BODY_SECONDS, False

    async def receiving() -> Any:
        nonlocal whole
        if whole:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), end - loop.time())
        except asyncio.TimeoutError:
            raise _TooLateError from None
        whole = not message.get("more_body")
        return message

    return receiving


def _paths(body: bytes) -> list[str]:
    try:
        found = json.loads(body)
    except ValueError:  # a refusal
        return []
    return [path for path in found if isinstance(path, str)] if isinstance(found, list) else []


def _token(scope: Any) -> str:
    found = HTTPConnection(scope).cookies.get(COOKIE, "")  # as the page's own handlers read it
    return found if 16 <= len(found) <= 64 else ""


def _is_secure(scope: Any) -> bool:
    forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-proto"]
    return scope.get("scheme") == "https" or b"https" in forwarded


def _with_cookie(token: str, secure: bool, send: Any) -> Any:
    """A ``send`` that sets the session's cookie; over https also where the page is embedded in another one."""
    rest = "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"
    cookie = (b"set-cookie", f"{COOKIE}={token}; Path=/; HttpOnly; {rest}".encode())

    async def with_cookie(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), cookie]}
        await send(message)

    return with_cookie


async def _refuse(send: Any, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

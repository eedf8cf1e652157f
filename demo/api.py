"""The HTTP server: OpenAI's ``/v1/chat/completions`` and ``/v1/models``, ``/health`` and ``/metrics``."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of functions that are made in a function,
# and could not find what those import when they are only text.

import asyncio
import contextlib
import dataclasses
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from prometheus_client.exposition import choose_encoder

from mobillama_v import __version__
from mobillama_v.assistant import Reply
from mobillama_v.demo.protocol import Answer, ChatRequest, RequestError, api_error, parse
from mobillama_v.demo.scheduler import Ticket
from mobillama_v.demo.service import Service, Stopped
from mobillama_v.errors import MobiLlamaVError, needs
from mobillama_v.images.fetch import fetch

_BODY_SECONDS = 60.0  # for a request to arrive


def build(
    service: Service, *, api_key: str | None = None, allow_urls: bool = False, grace: float = 10.0, root_path: str = ""
) -> Any:
    """The ASGI application (a ``FastAPI``); it closes the service when it shuts down.

    Args:
        service: answers.
        api_key: what ``/v1`` wants as a bearer token; None wants nothing.
        allow_urls: fetch pictures from public web addresses.
        grace: seconds that running answers get to end at shutdown.
        root_path: where a proxy serves this application.

    Raises:
        MissingExtraError: FastAPI is not installed.
    """
    with needs("the server"):
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse, Response
        from starlette.exceptions import HTTPException
    started = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close, grace)

    app = FastAPI(
        title="MobiLlama-V", version=__version__, lifespan=lifespan, root_path=root_path, docs_url=None, redoc_url=None
    )

    def error_response(error: RequestError) -> Response:
        headers = {"Retry-After": str(error.retry)} if error.retry else {}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(error.body, error.status, headers)

    def authorize(request: Request) -> None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        right = kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), (api_key or "").encode())
        if api_key is not None and not right:
            raise RequestError(
                "Incorrect or missing API key; send it as a bearer token.", status=401, code="invalid_api_key"
            )

    app.add_middleware(_CountRequests, service=service)

    @app.exception_handler(MobiLlamaVError)
    async def on_user_error(_: Request, error: MobiLlamaVError) -> Response:
        return error_response(api_error(error))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}."
        return error_response(RequestError(message, status=error.status_code))

    @app.exception_handler(Exception)
    async def on_bug(_: Request, error: Exception) -> Response:
        return error_response(RequestError("The server failed at this request.", status=500))  # its log says why

    @app.get("/health")
    async def health() -> Response:
        closed = service.scheduler.closed
        body = {"status": "closing" if closed else "ok", "version": __version__, "models": service.models}
        return JSONResponse(body, 503 if closed else 200)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(service.metrics.registry), media_type=kind)

    def model_object(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "mobillama-v"}

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        authorize(request)
        return JSONResponse({"object": "list", "data": [model_object(name) for name in service.models]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> Response:
        authorize(request)
        if name not in service.models:
            raise _unknown_model(name)
        return JSONResponse(model_object(name))

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        authorize(request)
        # Before the body is read, so that the memory that requests take is bounded too.
        ticket = service.scheduler.enter(request.client.host if request.client else "-")
        watch, streams = None, False
        try:
            body = await _body(request, service.limits.max_body)
            # Base64 of megabytes takes time that the event loop does not have.
            asked = await asyncio.to_thread(parse, body, service.limits, allow_urls=allow_urls)
            if asked.model not in service.models:
                raise _unknown_model(asked.model)
            watch = asyncio.create_task(_leave_on_disconnect(request, ticket))
            await _fetch(asked, service.limits.max_bytes)
            items = service.answer(ticket, asked.model, asked.messages, asked.pictures, asked.sampling)
            if not asked.stream:
                reply = [item async for item in items][-1]
                assert isinstance(reply, Reply)
                return JSONResponse(Answer(asked.model).whole(reply))
            first = await anext(items)  # an error until here has its status
            streams = True
            return _stream_response(ticket, watch, _events(asked, first, items))
        except Stopped:
            raise RequestError("The server is shutting down.", status=503, code="shutting_down", retry=60) from None
        finally:
            if not streams:
                ticket.leave()
                if watch is not None:
                    watch.cancel()

    return app


def _unknown_model(name: str) -> RequestError:
    return RequestError(f"The model {name[:100]!r} does not exist.", param="model", status=404, code="model_not_found")


class _CountRequests:
    """Counts the API's requests by status, and leaves everything else to what is under it."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or "/v1/" not in scope["path"]:
            await self.app(scope, receive, send)
            return
        requests, counted = self.service.metrics.requests, False

        async def counting(message: Any) -> None:
            nonlocal counted
            if message["type"] == "http.response.start":
                requests.labels(message["status"]).inc()
                counted = True
            await send(message)

        try:
            await self.app(scope, receive, counting)
        except Exception:
            if not counted:  # it is answered further out
                requests.labels(500).inc()
            raise


def _stream_response(ticket: Ticket, watch: asyncio.Task[None], events: AsyncIterator[str]) -> Any:
    from fastapi.responses import StreamingResponse

    class Stream(StreamingResponse):
        """A stream whose ticket is left however it ends, also where it was never iterated."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            watch.cancel()  # from here on the response itself hears that the client has gone
            try:
                await super().__call__(scope, receive, send)
            finally:
                ticket.leave()

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return Stream(events, media_type="text/event-stream", headers=headers)


async def _events(asked: ChatRequest, first: str | Reply, items: AsyncIterator[str | Reply]) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    answer, extra = Answer(asked.model), asked.include_usage
    yield _event(answer.chunk({"role": "assistant", "content": ""}, with_usage=extra))
    text, reply = "", None
    try:
        async for item in _with_first(first, items):
            if isinstance(item, Reply):
                reply = item
            elif item:
                # Whole answers have no space at their end: it waits until something follows.
                text += item
                certain = text.rstrip()
                text = text[len(certain) :]
                if certain:
                    yield _event(answer.chunk({"content": certain}, with_usage=extra))
    except Stopped:
        yield _event(RequestError("The server is shutting down.", status=503, code="shutting_down").body)
        return
    except MobiLlamaVError as error:
        yield _event(api_error(error).body)
        return
    assert reply is not None
    yield _event(answer.chunk({}, finish=reply.finish_reason, with_usage=extra))
    if extra:
        yield _event(answer.last(reply))
    yield "data: [DONE]\n\n"


async def _with_first(first: str | Reply, rest: AsyncIterator[str | Reply]) -> AsyncIterator[str | Reply]:
    yield first
    async for item in rest:
        yield item


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


async def _body(request: Any, most: int) -> Any:
    """The JSON of a request of at most ``most`` bytes."""
    if not request.headers.get("content-type", "").lower().startswith("application/json"):
        raise RequestError("The request's content type must be application/json.", status=415)
    large = RequestError(f"The request has more than the {most:,} bytes allowed.", status=413, code="request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise large
    data = bytearray()

    async def read() -> None:
        async for chunk in request.stream():
            data.extend(chunk)
            if len(data) > most:
                raise large

    try:
        await asyncio.wait_for(read(), _BODY_SECONDS)
    except asyncio.TimeoutError:
        raise RequestError("The request took too long to arrive.", status=408) from None
    try:
        return await asyncio.to_thread(json.loads, bytes(data))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The request is not valid JSON ({error}).") from None


async def _fetch(asked: ChatRequest, max_bytes: int) -> None:
    """Put the pictures at web addresses into the request."""
    for index, url in asked.urls.items():
        data = await asyncio.to_thread(fetch, url, max_bytes=max_bytes)
        asked.pictures[index] = dataclasses.replace(asked.pictures[index], data=data)


async def _leave_on_disconnect(request: Any, ticket: Ticket) -> None:
    """Stop the computation for a client that has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    ticket.leave()

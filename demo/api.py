"""The HTTP server: OpenAI's chat completions, completions and responses, its models, ``/health`` and ``/metrics``."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of functions that are made in a function,
# and could not find what those import when they are only text.

import asyncio
import contextlib
import dataclasses
import hmac
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from prometheus_client.exposition import choose_encoder

from mobillama_v import __version__
from mobillama_v.demo.answers import ANSWERS, Answer
from mobillama_v.demo.bind import HostMiddleware
from mobillama_v.demo.limits import HeldBytes
from mobillama_v.demo.protocol import PARAMS, AnswerRequest, RequestError, api_error, parse
from mobillama_v.demo.read_body import received
from mobillama_v.demo.request_bodies import Body, ChatBody, CompletionBody, ResponseBody
from mobillama_v.demo.scheduler import Ticket
from mobillama_v.demo.service import Service, Stopped
from mobillama_v.demo.workers import LARGE_BYTES
from mobillama_v.errors import MobiLlamaVError, needs
from mobillama_v.images.fetch import fetch
from mobillama_v.reply import Reply

_log = logging.getLogger(__name__)
_STOPPED = RequestError("The server is shutting down.", status=503, code="shutting_down", retry=60)
_REQUESTS: dict[str, type[Body]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/responses": ResponseBody,
}


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may ask, and what."""

    api_key: str | None = None
    """What ``/v1`` wants as a bearer token; None wants nothing."""
    key_for_all: bool = False
    """Whether the metrics and the schema want it, too."""
    allow_urls: bool = False
    """Fetch pictures from public web addresses."""
    strict: bool = False
    """Refuse unknown fields."""
    cors: Sequence[str] = ()
    """The web origins whose pages may read answers; ``*`` is any."""
    hosts: frozenset[str] | None = None
    """The names by which clients may address the server; None: any."""


def build(service: Service, access: Access | None = None, *, grace: float = 10.0, root_path: str = "") -> Any:
    """The ASGI application (a ``FastAPI``); it closes the service when it shuts down.

    Args:
        service: answers.
        access: who may ask, and what; by default anybody.
        grace: seconds that running answers get to end at shutdown.
        root_path: where a proxy serves this application.

    Raises:
        MissingExtraError: FastAPI is not installed.
    """
    with needs("the server"):
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse, Response
        from starlette.exceptions import HTTPException
        from starlette.middleware.cors import CORSMiddleware
    access = access or Access()
    started, held = int(time.time()), HeldBytes(service.limits.max_held)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close, grace)

    app = FastAPI(title="MobiLlama-V", version=__version__, lifespan=lifespan, root_path=root_path, openapi_url=None)

    def error_response(error: RequestError) -> Response:
        headers = {"Retry-After": str(error.retry)} if error.retry else {}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(error.body, error.status, headers)

    def authorize(request: Request, wanted: bool = True) -> None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        key = (access.api_key or "").encode()
        right = kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key)
        if wanted and access.api_key is not None and not right:
            raise RequestError(
                "Incorrect or missing API key; send it as a bearer token.", status=401, code="invalid_api_key"
            )

    app.add_middleware(_CountRequests, service=service)
    if access.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    if access.hosts is not None:
        app.add_middleware(HostMiddleware, hosts=access.hosts)

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
        authorize(request, access.key_for_all)
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(service.metrics.registry), media_type=kind)

    @app.get("/openapi.json", include_in_schema=False)
    async def schema(request: Request) -> Response:
        authorize(request, access.key_for_all)
        return JSONResponse(app.openapi())

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

    def parse_request(raw: Any, kind: type[Body]) -> AnswerRequest:
        asked = parse(raw, kind, service.limits, allow_urls=access.allow_urls, strict=access.strict)
        if asked.body.model not in service.models:
            raise _unknown_model(asked.body.model)
        return asked

    async def prepare(request: Request, kind: type[Body], stack: contextlib.AsyncExitStack) -> tuple[Answer, Any]:
        """The answer to a request and its items; what they hold is given back when the stack is closed."""
        authorize(request)
        owner = request.client.host if request.client else "-"
        body = await stack.enter_async_context(
            received(request, owner, service.limits.max_body, held, origins=access.cors)
        )
        # Only now: a request of which half has come holds no place.
        ticket = service.scheduler.enter(owner)
        stack.callback(ticket.leave)
        stack.callback(asyncio.create_task(_leave_on_disconnect(request, ticket)).cancel)
        asked = await service.workers.run(body.size > LARGE_BYTES, lambda: parse_request(body.json(), kind))
        if asked.ignored:
            _log.warning("ignored in a request from %s: %s", owner, ascii(asked.ignored)[1:-1])
        for index, url in asked.urls.items():
            data = await service.workers.fetch(fetch, url, max_bytes=service.limits.max_bytes)
            body.hold(len(data))
            asked.pictures[index] = dataclasses.replace(asked.pictures[index], data=data)
        name = asked.body.model
        items = service.answer(ticket, name, asked.messages, asked.pictures, asked.sampling, asked.choices)
        first = await anext(items)  # an error until here has its status
        return ANSWERS[kind](asked.body, asked.choices, service.assistant(name).tokenizer), _with_first(first, items)

    def endpoint(kind: type[Body]) -> Any:
        async def complete(request: Request) -> Response:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    answer, items = await prepare(request, kind, stack)
                    if answer.body.stream:
                        return _stream_response(_events(answer, items), stack.pop_all())
                    return JSONResponse(answer.whole([item async for item in items if isinstance(item, Reply)]))
                except Stopped:
                    raise _STOPPED from None
                except MobiLlamaVError as error:
                    raise api_error(error, PARAMS[kind]) from None

        return complete

    for path, kind in _REQUESTS.items():
        body = {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}
        app.post(path, name=path.removeprefix("/v1/"), openapi_extra={"requestBody": body})(endpoint(kind))
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


def _stream_response(events: AsyncIterator[str], holding: contextlib.AsyncExitStack) -> Any:
    from fastapi.responses import StreamingResponse

    class Stream(StreamingResponse):
        """A stream that gives back what its request holds however it ends, also where it was never iterated."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async with holding:
                await super().__call__(scope, receive, send)

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return Stream(events, media_type="text/event-stream", headers=headers)


async def _events(answer: Answer, items: AsyncIterator[str | Reply]) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    for event in answer.begin():
        yield event
    text, replies = "", list[Reply]()
    try:
        async for item in items:
            events: Iterator[str] = iter(())
            if isinstance(item, Reply):
                events, text = answer.end(len(replies), item), ""
                replies.append(item)
            elif item:
                # Whole answers have no space at their end: it waits until something follows.
                text += item
                certain = text.rstrip()
                text = text[len(certain) :]
                events = answer.piece(len(replies), certain) if certain else events
            for event in events:
                yield event
    except (Stopped, MobiLlamaVError) as error:
        yield answer.error(_STOPPED if isinstance(error, Stopped) else api_error(error))
        return
    for event in answer.finish(replies):
        yield event


async def _with_first(first: str | Reply, rest: AsyncIterator[str | Reply]) -> AsyncIterator[str | Reply]:
    yield first
    async for item in rest:
        yield item


async def _leave_on_disconnect(request: Any, ticket: Ticket) -> None:
    """Stop the computation for a client that has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    ticket.leave()

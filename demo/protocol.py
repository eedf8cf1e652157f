"""OpenAI's chat completions: JSON to a checked request, a reply to JSON, and our errors to theirs.

Only what changes nothing is left out quietly; a parameter that asks for what this model cannot do is an error that
names it. A message's pictures go before its words, wherever they stand in it, as the model was trained.
Reference: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from mobillama_v.assistant import Reply
from mobillama_v.demo.limits import BusyError, LimitError, Limits
from mobillama_v.demo.service import Picture
from mobillama_v.errors import CheckpointError, ConfigError, ImageError, MobiLlamaVError, ModelNotFoundError
from mobillama_v.generate import Sampling
from mobillama_v.prompt import Message, assistant, user

_MAX_STOPS = 4
_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
# Parameters that are fine as long as they ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
}
_OWN = ("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p")
_KNOWN = {*_OWN, "seed", "stop", *_IGNORED, *_NEUTRAL}


class RequestError(MobiLlamaVError):
    """A wrong request, as OpenAI's API reports it: by status, type, code and the parameter that is wrong."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None, retry: int = 0
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.code, self.retry = param, status, code, retry

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_ERRORS: tuple[tuple[type[MobiLlamaVError], dict[str, Any]], ...] = (
    (ModelNotFoundError, {"param": "model", "status": 404, "code": "model_not_found"}),
    (ImageError, {"param": "messages", "code": "invalid_image"}),
    (LimitError, {"param": "messages", "status": 413, "code": "over_the_limits"}),
    (CheckpointError, {"status": 500}),  # a model that is loaded when it is first asked for
    (ConfigError, {}),
)


@dataclass
class ChatRequest:
    """A checked request; ``urls`` are the web addresses among its pictures, by their place in ``pictures``."""

    model: str
    messages: list[Message] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    urls: dict[int, str] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    stream: bool = False
    include_usage: bool = False


def parse(body: Any, limits: Limits, *, allow_urls: bool = False) -> ChatRequest:
    """Check the JSON of a request; no picture is decoded.

    Raises:
        RequestError: it is not what the API takes, or is over the limits.
    """
    if not isinstance(body, dict):
        raise RequestError("The request must be a JSON object.")
    for key in body:
        if key not in _KNOWN:
            raise RequestError(f"Unrecognized request argument supplied: {key[:100]}", param=key[:100])
    for key, neutral in _NEUTRAL.items():
        if body.get(key) is not None and body[key] not in neutral:
            raise RequestError(f"{key!r} asks for something that this model cannot do; leave it out.", param=key)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError("'model' must be the name of a model; see /v1/models.", param="model")
    options = _get(body, "stream_options", dict, {})
    request = ChatRequest(
        model,
        sampling=_sampling(body, limits),
        stream=_get(body, "stream", bool, False),
        include_usage=_get(options, "include_usage", bool, False),
    )
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("'messages' must be a list with at least one message.", param="messages")
    for i, message in enumerate(messages):
        request.messages.append(_MessageParser(request, limits, allow_urls, f"messages.{i}").message(message))
    return request


def _get(body: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = body.get(key)
    if value is None:
        return default
    if kind is float and isinstance(value, int):
        value = value if isinstance(value, bool) else float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RequestError(f"{key!r} must be of type {kind.__name__}, not {type(value).__name__}.", param=key)
    return value


def _sampling(body: dict[str, Any], limits: Limits) -> Sampling:
    key = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    tokens = _get(body, key, int, min(Sampling().max_new_tokens, limits.max_new_tokens))
    if not 1 <= tokens <= limits.max_new_tokens:
        raise RequestError(f"{key!r} must be from 1 to {limits.max_new_tokens}, not {tokens}.", param=key)
    temperature, top_p = _get(body, "temperature", float, 0.0), _get(body, "top_p", float, 1.0)
    if not 0 <= temperature <= 2:
        raise RequestError(f"'temperature' must be from 0 to 2, not {temperature}.", param="temperature")
    if not 0 < top_p <= 1:
        raise RequestError(f"'top_p' must be above 0 and at most 1, not {top_p}.", param="top_p")
    seed = _get(body, "seed", int, None)
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise RequestError("'seed' must be a 64-bit integer.", param="seed")
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(each, str) and 0 < len(each) <= 200 for each in stops):
        raise RequestError("'stop' must be a string, or a list of strings of 1 to 200 characters.", param="stop")
    if len(stops) > _MAX_STOPS:
        raise RequestError(f"'stop' may have at most {_MAX_STOPS} strings, not {len(stops)}.", param="stop")
    return Sampling(tokens, temperature, top_p, seed, tuple(stops))


class _MessageParser:
    """Reads one message into a request."""

    def __init__(self, request: ChatRequest, limits: Limits, allow_urls: bool, where: str) -> None:
        self.request, self.limits, self.allow_urls, self.where = request, limits, allow_urls, where

    def message(self, message: Any) -> Message:
        """Its role and content."""
        if not isinstance(message, dict):
            raise RequestError(f"{self.where} must be an object.", param=self.where)
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "developer", "user", "assistant"):
            raise RequestError(
                f"{self.where}.role must be system, developer, user or assistant, not {str(role)[:100]!r}.",
                param=f"{self.where}.role",
            )
        if role == "assistant" and content is None:
            raise RequestError("Tool calls are not supported; an assistant's message needs text.", param=self.where)
        before = len(self.request.pictures)
        text = content if isinstance(content, str) else self._parts(content)
        images = len(self.request.pictures) - before
        if role == "user":
            return user(text, images=images)
        if images:
            raise RequestError(f"{self.where}: only a user's message may have pictures.", param=self.where)
        return assistant(text) if role == "assistant" else Message("system", (text,))

    def _parts(self, content: Any) -> str:
        where = f"{self.where}.content"
        if not isinstance(content, list) or not content:
            raise RequestError(f"{where} must be a string or a list of parts.", param=where)
        texts = []
        for i, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif kind == "image_url":
                self._picture(part.get("image_url"), f"{where}.{i}.image_url")
            else:
                raise RequestError(f"{where}.{i} must be a text or an image_url part.", param=f"{where}.{i}")
        return "\n".join(texts)

    def _picture(self, value: Any, where: str) -> None:
        url = value.get("url") if isinstance(value, dict) else None
        if not isinstance(url, str):
            raise RequestError(f"{where}.url must be a data URL or a web address.", param=f"{where}.url")
        where, pictures = f"{where}.url", self.request.pictures
        if len(pictures) >= self.limits.max_images:
            raise RequestError(
                f"The conversation has more than the {self.limits.max_images} pictures that are allowed.",
                param=where,
                code="too_many_images",
            )
        if url[:5].lower() == "data:":
            data = self._data(url, where)
        elif url[:8].lower().startswith(("http://", "https://")):
            if not self.allow_urls:
                raise RequestError("Web addresses are not fetched here; send the picture as a data URL.", param=where)
            self.request.urls[len(pictures)], data = url, b""
        else:
            raise RequestError("A picture must be a data URL (data:image/...;base64,...).", param=where)
        pictures.append(Picture(data, f"picture {len(pictures) + 1}"))

    def _data(self, url: str, where: str) -> bytes:
        head, comma, data = url.partition(",")
        if not comma or not head.lower().startswith("data:image/") or not head.lower().endswith(";base64"):
            raise RequestError("A data URL must start with data:image/TYPE;base64,", param=where)
        if len(data) // 4 * 3 - 2 > self.limits.max_bytes:
            raise RequestError(
                f"The picture has about {len(data) // 4 * 3:,} bytes; at most {self.limits.max_bytes:,} are allowed.",
                param=where,
                status=413,
                code="image_too_large",
            )
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"The picture is not valid base64 ({error}).", param=where) from None


def api_error(error: MobiLlamaVError) -> RequestError:
    """The error of the API that corresponds to one of ours."""
    if isinstance(error, RequestError):
        return error
    message = f"{str(error)[:1].upper()}{str(error)[1:]}"
    if isinstance(error, BusyError):
        return RequestError(message, status=429 if error.own else 503, code="queue_full", retry=error.retry_after)
    for kind, options in _ERRORS:
        if isinstance(error, kind):
            return RequestError(message, **options)
    return RequestError(message, param="messages", code="context_length_exceeded" if "context" in message else None)


class Answer:
    """What goes back for one request; its id and time are the same in all parts of it."""

    def __init__(self, model: str) -> None:
        self.model, self.id, self.created = model, f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def whole(self, reply: Reply) -> dict[str, Any]:
        """The JSON of an answer that is not streamed."""
        message = {"role": "assistant", "content": reply.text, "api_error": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(reply)}

    def chunk(self, delta: dict[str, Any], *, finish: str | None = None, with_usage: bool = False) -> dict[str, Any]:
        """The JSON of one part of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {
            **self._head("chat.completion.chunk"),
            "choices": [choice],
            **({"usage": None} if with_usage else {}),
        }

    def last(self, reply: Reply) -> dict[str, Any]:
        """The JSON of the part that reports the usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(reply)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(reply: Reply) -> dict[str, Any]:
    """Tokens of a reply; those of pictures are among the prompt's."""
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.new_tokens,
        "total_tokens": reply.prompt_tokens + reply.new_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": reply.image_tokens},
    }

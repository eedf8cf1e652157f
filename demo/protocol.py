"""OpenAI's requests: JSON to a checked request, and our errors to theirs.

What changes nothing is left out quietly, what is unknown is left out and named. A field that asks for what this model
cannot do is an error that names it. Conversations are read by :func:`~mobillama_v.conversation.read_chat`.
Reference: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from mobillama_v.conversation import Conversation, read_chat
from mobillama_v.demo.limits import BusyError, LimitError, Limits
from mobillama_v.demo.request_bodies import (
    HARMLESS,
    Body,
    ChatBody,
    CompletionBody,
    ResponseBody,
    read_sampling,
)
from mobillama_v.demo.service import Picture
from mobillama_v.errors import CheckpointError, ConfigError, ImageError, MobiLlamaVError, ModelNotFoundError
from mobillama_v.generate import Sampling
from mobillama_v.images.fetch import is_url
from mobillama_v.images.inline import decode_base64, decode_data_url, is_data_url
from mobillama_v.prompt import Message

_HEAD = 200  # letters of a data URL before its data, and then some
_BASE64 = re.compile(r"\s*[A-Za-z0-9+/_-]{40}")  # no path and no address begins so


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
    (ImageError, {"code": "invalid_image"}),
    (LimitError, {"status": 413, "code": "over_the_limits"}),
    (CheckpointError, {"status": 500}),  # a model that is loaded when it is first asked for
    (ConfigError, {}),
)


@dataclass
class AnswerRequest:
    """A checked request; ``urls`` are the web addresses among its pictures, by their place in ``pictures``."""

    body: Body
    messages: list[Message]
    sampling: Sampling
    choices: int = 1
    pictures: list[Picture] = field(default_factory=list)
    urls: dict[int, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    """Names of unknown fields that asked for something."""


def parse(
    raw: Any, kind: type[Body], limits: Limits, *, allow_urls: bool = False, strict: bool = False
) -> AnswerRequest:
    """Check the JSON of a request; no picture is decoded.

    Args:
        raw: the JSON.
        kind: what it should be.
        limits: of requests.
        allow_urls: whether pictures may be web addresses.
        strict: refuse unknown fields instead of leaving them out.

    Raises:
        RequestError: it is not what the API takes.
        MobiLlamaVError: it has no conversation, no picture where one should be, or is over the limits.
    """
    if not isinstance(raw, dict):
        raise RequestError("The request must be a JSON object.")
    given = {key: value for key, value in raw.items() if value is not None}
    _refuse_impossible(given)
    unknown = [key for key in given if key not in kind.model_fields and key not in HARMLESS]
    if unknown and strict:
        name = unknown[0][:100]
        raise RequestError(f"Unrecognized request argument supplied: {name}", param=name)
    try:
        body = kind.model_validate(given)
    except ValidationError as error:
        raise _invalid(error, given) from None
    choices = getattr(body, "n", 1)
    if choices > limits.max_choices:
        raise RequestError(f"'n' must be from 1 to {limits.max_choices}, not {choices}.", param="n")
    chat = _conversation(body)
    request = AnswerRequest(body, list(chat.messages), read_sampling(body, limits), choices)
    request.ignored = [key[:50] for key in unknown if given[key]][:20]
    if len(chat.images) > limits.max_images:
        raise RequestError(
            f"The conversation has more than the {limits.max_images} pictures that are allowed.",
            param="messages",
            code="too_many_images",
        )
    for index, source in enumerate(chat.images):
        name, data = f"picture {index + 1}", b""
        if not isinstance(source, str):
            raise ImageError(f"{name} is no text; send a data URL.")
        if not is_url(source):
            data = _picture_bytes(source, name, limits.max_bytes)
        elif allow_urls:
            request.urls[index] = source
        else:
            raise ImageError(f"{name} is a web address, and none are fetched here; send it as a data URL.")
        request.pictures.append(Picture(data, name))
    return request


def _picture_bytes(text: str, name: str, most: int) -> bytes:
    """The bytes of a picture that is written as text; too long a text is refused before it is decoded."""
    letters = len(text) - 2 * text.count("%") - sum(map(text.count, "\r\n"))
    if letters * 3 // 4 > most + _HEAD:
        raise LimitError(f"{name} has about {letters * 3 // 4:,} bytes; at most {most:,} are allowed.")
    if is_data_url(text):
        return decode_data_url(text)
    if not _BASE64.match(text):
        raise ImageError(f"{name} is neither a data URL (data:image/png;base64,...) nor base64; send its bytes so.")
    return decode_base64(text)


def _refuse_impossible(given: dict[str, Any]) -> None:
    for tools, choice in (("tools", "tool_choice"), ("functions", "function_call")):
        if given.get(tools) and given.get(choice) != "none":
            raise _unsupported(tools, f"'{tools}' is not supported with this model")
    for key in ("logit_bias", "suffix", "audio", "previous_response_id", "conversation"):
        if given.get(key):
            raise _unsupported(key, f"'{key}' is not supported with this model")
    if given.get("modalities", ["text"]) != ["text"]:
        raise _unsupported("modalities", "this model answers with text alone, and 'modalities' wants more")
    text = given.get("text")
    for key, form in (("response_format", given.get("response_format")), ("text", text)):
        form = form.get("format", {}) if key == "text" and isinstance(form, dict) else form
        wanted = form.get("type", "text") if isinstance(form, dict) else "text"
        if wanted != "text":
            raise _unsupported(key, f"'{key}' of type '{str(wanted)[:50]}' is not supported with this model")


def _unsupported(param: str, message: str) -> RequestError:
    return RequestError(f"Invalid parameter: {message}; leave it out.", param=param, code="unsupported_parameter")


def _invalid(error: ValidationError, given: dict[str, Any]) -> RequestError:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    name = str(found[0]["loc"][0])
    if name not in given:
        return RequestError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    reasons = dict.fromkeys(each["msg"] for each in found if each["loc"][0] == name)
    return RequestError(f"Invalid value for '{name}': {' Or: '.join(reasons)}.", param=name, code="invalid_value")


def _conversation(body: Body) -> Conversation:
    """The conversation of a request.

    Raises:
        RequestError: it has none.
    """
    try:
        if isinstance(body, ChatBody):
            messages, body.messages = body.messages, []  # their text is not kept beside the pictures
            return read_chat(messages)
        if isinstance(body, CompletionBody):
            return read_chat(body.prompt if isinstance(body.prompt, str) else body.prompt[0])
        assert isinstance(body, ResponseBody)
        said = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
        body.input = []
        return read_chat([{"role": "system", "content": body.instructions}, *map(_message, said)])
    except MobiLlamaVError as error:
        raise RequestError(f"{str(error)[:1].upper()}{str(error)[1:]}", param=PARAMS[type(body)]) from None


PARAMS: dict[type[Body], str] = {ChatBody: "messages", CompletionBody: "prompt", ResponseBody: "input"}


def _message(item: Any) -> Any:
    """An item of a response's input as a message."""
    if isinstance(item, dict):
        if item.get("type") == "function_call_output":
            return {"role": "tool", "content": item.get("output")}
        if item.get("type") in ("function_call", "reasoning"):
            return {"role": "assistant", "content": None}
    return item


def api_error(error: MobiLlamaVError, param: str = "messages") -> RequestError:
    """The error of the API that corresponds to one of ours, about ``param`` where it is about the conversation."""
    if isinstance(error, RequestError):
        return error
    message = f"{str(error)[:1].upper()}{str(error)[1:]}"
    if isinstance(error, BusyError):
        return RequestError(message, status=429 if error.own else 503, code="queue_full", retry=error.retry_after)
    for kind, options in _ERRORS:
        if isinstance(error, kind):
            about = {"param": param} if kind in (ImageError, LimitError) else {}
            return RequestError(message, **(about | options))
    return RequestError(message, param=param, code="context_length_exceeded" if "context" in message else None)

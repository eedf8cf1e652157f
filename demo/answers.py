"""The JSON of answers, whole and as server-sent events, for each kind of request."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from mobillama_v.demo.protocol import RequestError
from mobillama_v.demo.request_bodies import Body, ChatBody, CompletionBody, ResponseBody
from mobillama_v.reply import Reply
from mobillama_v.tokenization import TextTokenizer


def _event(body: dict[str, Any], name: str = "") -> str:
    return f"{f'event: {name}{chr(10)}' if name else ''}data: {json.dumps(body, ensure_ascii=False)}\n\n"


class Answer(ABC):
    """What goes back for one request; its id and time are the same in all parts of it.

    A stream is :meth:`begin`, then for each choice :meth:`piece` as often as it likes and :meth:`end`, then
    :meth:`finish`. Each gives server-sent events.
    """

    prefix, kind = "", ""

    def __init__(self, body: Body, choices: int, tokenizer: TextTokenizer) -> None:
        self.body, self.choices, self.tokenizer = body, choices, tokenizer
        self.id, self.created = f"{self.prefix}{uuid.uuid4().hex}", int(time.time())

    @abstractmethod
    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The JSON of an answer that is not streamed."""

    def begin(self) -> Iterator[str]:
        """What comes before the text."""
        return iter(())

    @abstractmethod
    def piece(self, index: int, text: str) -> Iterator[str]:
        """Some more text of a choice."""

    @abstractmethod
    def end(self, index: int, reply: Reply) -> Iterator[str]:
        """The end of a choice."""

    @abstractmethod
    def finish(self, replies: Sequence[Reply]) -> Iterator[str]:
        """The end of it all."""

    def error(self, error: RequestError) -> str:
        """The end where something went wrong on the way."""
        return _event(error.body)


class ChatAnswer(Answer):
    """The answer to a :class:`ChatBody`."""

    prefix, kind = "chatcmpl-", "chat.completion"

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """See :class:`Answer`."""
        choices = [self._choice(i, each) | {"finish_reason": each.finish_reason} for i, each in enumerate(replies)]
        return self._head(self.kind) | {"choices": choices, "usage": usage(replies)}

    def begin(self) -> Iterator[str]:
        """See :class:`Answer`."""
        for index in range(self.choices):
            yield self._part({"index": index, "delta": {"role": "assistant", "content": ""}})

    def piece(self, index: int, text: str) -> Iterator[str]:
        """See :class:`Answer`."""
        yield self._part({"index": index, "delta": {"content": text}})

    def end(self, index: int, reply: Reply) -> Iterator[str]:
        """See :class:`Answer`."""
        found = {"logprobs": self._log_probs(reply), "finish_reason": reply.finish_reason}
        yield self._part({"index": index, "delta": {}} | found)

    def finish(self, replies: Sequence[Reply]) -> Iterator[str]:
        """See :class:`Answer`."""
        if self._with_usage:
            yield _event(self._head(f"{self.kind}.chunk") | {"choices": [], "usage": usage(replies)})
        yield "data: [DONE]\n\n"

    @property
    def _with_usage(self) -> bool:
        assert isinstance(self.body, (ChatBody, CompletionBody))
        return bool(self.body.stream_options.get("include_usage"))

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._log_probs(reply)}

    def _part(self, choice: dict[str, Any]) -> str:
        choice = {"logprobs": None, "finish_reason": None} | choice
        rest = {"usage": None} if self._with_usage else {}
        return _event(self._head(f"{self.kind}.chunk") | {"choices": [choice]} | rest)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}

    def _log_probs(self, reply: Reply) -> dict[str, Any] | None:
        if not reply.log_probs:
            return None
        content = [
            self._token(each.token, each.log_prob) | {"top_logprobs": [self._token(*top) for top in each.top]}
            for each in reply.log_probs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, log_prob: float) -> dict[str, Any]:
        text = self.tokenizer.token_text(token)
        return {"token": text, "logprob": log_prob, "bytes": list(self.tokenizer.token_bytes(token))}


class CompletionAnswer(ChatAnswer):
    """The answer to a :class:`CompletionBody`."""

    prefix, kind = "cmpl-", "text_completion"

    def begin(self) -> Iterator[str]:
        """See :class:`Answer`."""
        for index in range(self.choices) if self._echo else ():
            yield self._part({"index": index, "text": self._echo})

    def piece(self, index: int, text: str) -> Iterator[str]:
        """See :class:`Answer`."""
        yield self._part({"index": index, "text": text})

    def end(self, index: int, reply: Reply) -> Iterator[str]:
        """See :class:`Answer`."""
        found = {"logprobs": self._log_probs(reply), "finish_reason": reply.finish_reason}
        yield self._part({"index": index, "text": ""} | found)

    @property
    def _echo(self) -> str:
        assert isinstance(self.body, CompletionBody)
        prompt = self.body.prompt if isinstance(self.body.prompt, str) else self.body.prompt[0]
        return prompt if self.body.echo else ""

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        return {"index": index, "text": self._echo + reply.text, "logprobs": self._log_probs(reply)}

    def _head(self, kind: str) -> dict[str, Any]:
        return super()._head(self.kind)

    def _log_probs(self, reply: Reply) -> dict[str, Any] | None:
        if not reply.log_probs:
            return None
        texts = [self.tokenizer.token_text(each.token) for each in reply.log_probs]
        return {
            "tokens": texts,
            "token_logprobs": [each.log_prob for each in reply.log_probs],
            "top_logprobs": [
                {self.tokenizer.token_text(token): log_prob for token, log_prob in each.top} for each in reply.log_probs
            ],
            "text_offset": [len(self._echo) + sum(map(len, texts[:i])) for i in range(len(texts))],
        }


class ResponseAnswer(Answer):
    """The answer to a :class:`ResponseBody`."""

    prefix, kind = "resp_", "response"

    def __init__(self, body: Body, choices: int, tokenizer: TextTokenizer) -> None:
        super().__init__(body, choices, tokenizer)
        self.item, self.events = f"msg_{uuid.uuid4().hex}", 0

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """See :class:`Answer`."""
        done = replies[0].finish_reason == "stop"
        return self._response("completed" if done else "incomplete") | {
            "incomplete_details": None if done else {"reason": "max_output_tokens"},
            "output": [self._item(replies[0].text, done=True)],
            "usage": {
                "input_tokens": replies[0].prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": replies[0].new_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": replies[0].prompt_tokens + replies[0].new_tokens,
            },
        }

    def begin(self) -> Iterator[str]:
        """See :class:`Answer`."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self._response("in_progress"))
        yield self._event("response.output_item.added", item=self._item("", done=False) | {"content": []})
        yield self._event("response.content_part.added", part=_text_part(""), content_index=0)

    def piece(self, index: int, text: str) -> Iterator[str]:
        """See :class:`Answer`."""
        yield self._event("response.output_text.delta", delta=text, logprobs=[], content_index=0)

    def end(self, index: int, reply: Reply) -> Iterator[str]:
        """See :class:`Answer`."""
        yield self._event("response.output_text.done", text=reply.text, logprobs=[], content_index=0)
        yield self._event("response.content_part.done", part=_text_part(reply.text), content_index=0)
        yield self._event("response.output_item.done", item=self._item(reply.text, done=True))

    def finish(self, replies: Sequence[Reply]) -> Iterator[str]:
        """See :class:`Answer`."""
        whole = self.whole(replies)
        yield self._event(f"response.{whole['status']}", response=whole)

    def error(self, error: RequestError) -> str:
        """See :class:`Answer`."""
        return self._event("error", message=str(error), code=error.code, param=error.param)

    def _event(self, name: str, **body: Any) -> str:
        place: dict[str, Any] = {"output_index": 0} if name.startswith("response.output_item") else {}
        if "content_index" in body:
            place = {"output_index": 0, "item_id": self.item}
        self.events += 1
        return _event({"type": name, "sequence_number": self.events - 1, **place, **body}, name)

    def _item(self, text: str, *, done: bool) -> dict[str, Any]:
        head = {"id": self.item, "type": "message", "status": "completed" if done else "in_progress"}
        return head | {"role": "assistant", "content": [_text_part(text)]}

    def _response(self, status: str) -> dict[str, Any]:
        body = self.body
        assert isinstance(body, ResponseBody)
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions or None,
            "max_output_tokens": body.max_output_tokens,
            "metadata": {},
            "model": body.model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def usage(replies: Sequence[Reply]) -> dict[str, Any]:
    """Tokens of the choices of one request; those of pictures are among the prompt's."""
    prompt, new = replies[0].prompt_tokens, sum(reply.new_tokens for reply in replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": replies[0].image_tokens},
    }


ANSWERS: dict[type[Body], type[Answer]] = {
    ChatBody: ChatAnswer,
    CompletionBody: CompletionAnswer,
    ResponseBody: ResponseAnswer,
}

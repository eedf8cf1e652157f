"""What clients may send, field by field: the bodies of the API's requests, and how their fields become a sampling.

The classes are also what the OpenAPI schema says. Values of null are left out before.
References: https://platform.openai.com/docs/api-reference, and what vLLM, llama.cpp and Ollama add to it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from mobillama_v.demo.limits import Limits
from mobillama_v.generate import Sampling

HARMLESS = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention parallel_tool_calls "
    "tools tool_choice functions function_call modalities audio prediction logit_bias response_format text suffix "
    "previous_response_id conversation cache_prompt keep_alive skip_special_tokens add_generation_prompt".split()
)
"""Fields beyond those below that nobody misses, or that are refused where they ask for something."""

_COLDEST = 1e-3  # below, the likeliest token is taken, as at 0: logits divided by less would overflow
_RANDOM = -1  # what llama.cpp's clients send for no seed


def _not_zero(length: int) -> int:
    if length == 0:
        raise ValueError("an answer has at least 1 token; -1 is the longest allowed")
    return length


_Length = Annotated[int, AfterValidator(_not_zero)]
_Stop = Annotated[str, Field(min_length=1, max_length=200)]


class Body(BaseModel):
    """What all requests have in common."""

    model: str = Field(min_length=1, description="A model's name, from /v1/models.")
    stream: bool = Field(False, description="Answer as server-sent events.")
    temperature: float = Field(0.0, ge=0, le=2, description="0 always takes the likeliest token.")
    top_p: float = Field(1.0, ge=0, le=1, description="Sample among the likeliest tokens of this probability.")
    repetition_penalty: float = Field(1.0, ge=0.1, le=10, description="Above 1: the answer repeats its words less.")
    no_repeat_ngram_size: int = Field(0, ge=0, description="No run of so many tokens comes twice; 0: it may.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Repeats a sampled answer; -1 is none.")


class _OlderBody(Body):
    stream_options: dict[str, Any] = Field({}, description="include_usage: end a stream with the numbers of tokens.")
    n: int = Field(1, ge=1, description="How many answers.")
    max_tokens: _Length | None = Field(None, description="Longest answer in tokens; -1 is the longest allowed.")
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] = Field([], description="Texts that end the answer.")


class ChatBody(_OlderBody):
    """The body of a request to ``/v1/chat/completions``."""

    messages: list[Any] = Field(min_length=1, description="The conversation: text, and image_url parts of the user's.")
    max_completion_tokens: _Length | None = Field(None, description="The same as max_tokens, and goes before it.")
    logprobs: bool = Field(False, description="Report how likely each token was.")
    top_logprobs: int = Field(0, ge=0, le=20, description="Report so many of the likeliest tokens in its place, too.")


class CompletionBody(_OlderBody):
    """The body of a request to ``/v1/completions``."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)] = Field(
        description="A question, or a list of one. It becomes the user's only message."
    )
    logprobs: int | None = Field(None, ge=0, le=20, description="Report so many of the likeliest tokens at each place.")
    echo: bool = Field(False, description="Begin the text with the prompt.")


class ResponseBody(Body):
    """The body of a request to ``/v1/responses``."""

    input: str | list[Any] = Field(min_length=1, description="A question, or messages with input_text and input_image.")
    instructions: str = Field("", description="A system message.")
    max_output_tokens: _Length | None = Field(None, description="Longest answer in tokens; -1 is the longest allowed.")


def read_sampling(body: Body, limits: Limits) -> Sampling:
    """How to answer. A longest answer over the limit becomes the limit, and so does a negative one."""
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    longest = next((value for name in names if (value := getattr(body, name, None)) is not None), None)
    if longest is None:
        longest = Sampling().max_new_tokens
    stop = getattr(body, "stop", [])
    return Sampling(
        max_new_tokens=limits.max_new_tokens if longest < 0 else min(longest, limits.max_new_tokens),
        temperature=body.temperature if body.temperature >= _COLDEST else 0.0,
        top_p=max(body.top_p, 1e-9),
        seed=None if body.seed in (None, _RANDOM) else body.seed % 2**64,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        repetition_penalty=body.repetition_penalty,
        no_repeat_ngram=body.no_repeat_ngram_size,
        top_log_probs=_top_log_probs(body),
    )


def _top_log_probs(body: Body) -> int | None:
    if isinstance(body, ChatBody):
        return body.top_logprobs if body.logprobs else None
    return body.logprobs if isinstance(body, CompletionBody) else None

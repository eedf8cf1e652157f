"""Prefill, decode, stopping and streaming, for batches whose rows stop on their own.

An :class:`Engine` runs the decoder, in arrays of its own: torch's is in :mod:`mobillama_v.backends.torch`, the native
one in :mod:`mobillama_v.backends.native.engine`. Nothing here imports either.

Shapes: B rows, T prompt positions (padded on the left), D hidden, V vocabulary.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mobillama_v.config import DecoderConfig
from mobillama_v.errors import ConfigError, PromptError
from mobillama_v.prompt import Encoded

_REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not a whole character yet


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop. Temperature 0 is greedy; ``stop`` strings are not part of the text.

    The token during which ``max_seconds`` pass, prompt included, is the last one.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_seconds: float = math.inf

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be 1 or more, not {self.max_new_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 (greedy) or positive, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if "" in self.stop:
            raise ConfigError("a stop string is empty; leave it out.")
        if not self.max_seconds > 0:
            raise ConfigError(f"max_seconds must be above 0, not {self.max_seconds}.")


class Detokenizer(Protocol):
    """What generation needs of a tokenizer."""

    eos_id: int

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""
        ...


@dataclass
class Completion:
    """One row's result so far; it finishes by ``stop`` (end token or stop string) or ``length`` (of tokens or time)."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: Literal["stop", "length"] | None = None


class TextStream:
    """Turns one row's tokens into text that can be printed at once.

    Held back are bytes that are not a whole character yet, and anything that may be the start of a stop string.
    """

    def __init__(self, tokenizer: Detokenizer, stop: tuple[str, ...]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._sent = 0
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one token; return the text that became certain."""
        self._ids.append(token)
        whole = self._tokenizer.decode(self._ids)
        found = [at for at in (whole.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._send(whole[: min(found)])
        whole = whole.rstrip(_REPLACEMENT)
        return self._send(whole[: len(whole) - self._pending(whole)])

    def flush(self) -> str:
        """Return what was held back; the answer has ended."""
        return "" if self.stopped else self._send(self._tokenizer.decode(self._ids))

    def _pending(self, text: str) -> int:
        """Length of the longest end of ``text`` that starts a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                return size
        return 0

    def _send(self, certain: str) -> str:
        piece, self._sent = certain[self._sent :], max(self._sent, len(certain))
        self.text += piece
        return piece


class Decoding(Protocol):
    """A batch of B prompts being answered; the engine holds its keys and values."""

    def prefill(self, inputs_embeds: Any, attention_mask: Any) -> Any:
        """Run prompts [B,T,D], padded on the left as ``attention_mask`` [B,T] says; logits [B,V] for the next token."""
        ...

    def push(self, tokens: list[int]) -> None:
        """Say with which token each row goes on. Batches that said so when one asks for logits may run together."""
        ...

    def logits(self) -> Any:
        """Run the tokens that were pushed, unless they have run; logits [B,V] for the next."""
        ...

    def close(self) -> None:
        """Go on no further: tokens that were pushed and have not run are dropped."""
        ...


class Engine(ABC):
    """What runs a decoder of shape ``spec``, in arrays of its own kind."""

    spec: DecoderConfig
    title: str
    """What computes, in a few words."""

    @abstractmethod
    def compose(self, prompts: Sequence[Encoded], images: Sequence[Any], pad_id: int) -> tuple[Any, Any]:
        """What :func:`stream` takes of B prompts, padded on the left.

        Args:
            prompts: ids and image slots.
            images: visual tokens [P',D] of all prompts' images, in order.
            pad_id: any id; it stands where a row has no position.

        Returns:
            Embeddings [B,T,D], those of images in their slots, and 1 where a position exists, [B,T].
        """

    @abstractmethod
    def sampler(self, sampling: Sampling) -> Callable[[Any], list[int]]:
        """What chooses a token for each row from logits [B,V].

        The likeliest where the temperature is 0, else at random within the smallest set of mass ``top_p``; with a seed,
        always the same from the same logits.
        """

    @abstractmethod
    def begin(self, rows: int, capacity: int) -> Decoding:
        """Room to answer ``rows`` prompts, of ``capacity`` positions each with their answers."""


def stream(
    engine: Engine, tokenizer: Detokenizer, inputs_embeds: Any, attention_mask: Any, sampling: Sampling
) -> Iterator[tuple[list[str], list[Completion]]]:
    """Answer B prompts, a step at a time.

    Between two steps it is known which tokens come next, and nothing is computed: the engine may run them together with
    those of other streams that have come as far.

    Args:
        engine: runs the decoder.
        tokenizer: decodes ids and names the end token.
        inputs_embeds: [B,T,D], padded on the left.
        attention_mask: [B,T], 1 where a position exists.
        sampling: see :class:`Sampling`.

    Yields:
        The new text of every row (often empty), and the rows' completions, the same objects at every step.

    Raises:
        PromptError: the prompt fills the context.
    """
    rows, length, _ = inputs_embeds.shape
    room = engine.spec.max_position_embeddings - length
    if room < 1:
        raise PromptError(f"the prompt has {length} tokens and the model's context is {length + room}; shorten it.")
    budget = min(sampling.max_new_tokens, room)
    deadline = time.monotonic() + sampling.max_seconds
    choose = engine.sampler(sampling)
    decoding = engine.begin(rows, length + budget)
    streams = [TextStream(tokenizer, sampling.stop) for _ in range(rows)]
    completions = [Completion() for _ in range(rows)]
    try:
        logits = decoding.prefill(inputs_embeds, attention_mask)
        for step in range(budget):
            tokens = choose(logits)
            last = step == budget - 1 or time.monotonic() >= deadline
            pieces = _advance(tokens, tokenizer.eos_id, streams, completions, last=last)
            ended = last or all(c.finish_reason for c in completions)
            if not ended:
                decoding.push(tokens)
            yield pieces, completions
            if ended:
                return
            logits = decoding.logits()
    finally:
        decoding.close()


def _advance(
    tokens: list[int], eos_id: int, streams: list[TextStream], completions: list[Completion], *, last: bool
) -> list[str]:
    """Give every unfinished row its token; finish rows that ended. Returns each row's new text."""
    pieces = []
    for token, text, completion in zip(tokens, streams, completions, strict=True):
        piece = ""
        if completion.finish_reason is None:
            if token == eos_id:
                completion.finish_reason = "stop"
            else:
                completion.ids.append(token)
                piece = text.push(token)
                if text.stopped:
                    completion.finish_reason = "stop"
                elif last:
                    completion.finish_reason = "length"
            if completion.finish_reason:
                piece += text.flush()
            completion.text = text.text
        pieces.append(piece)
    return pieces


def generate(
    engine: Engine, tokenizer: Detokenizer, inputs_embeds: Any, attention_mask: Any, sampling: Sampling
) -> list[Completion]:
    """:func:`stream` to its end."""
    *_, (_, completions) = stream(engine, tokenizer, inputs_embeds, attention_mask, sampling)
    return completions

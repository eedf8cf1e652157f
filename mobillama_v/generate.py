"""The only decode loop: prefill, decode, score, stopping and streaming, in batches whose rows end alone.

An :class:`Engine` runs the decoder: torch's is in :mod:`mobillama_v.backends.torch`, the native one in
:mod:`mobillama_v.backends.native.engine`. Nothing here imports either. A :class:`Generation` answers prompts with one;
:func:`decode_step` runs the next tokens of several generations together.

Shapes: B rows, T positions of a prompt, P' visual tokens an image, D hidden, V vocabulary, N tokens of an answer.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from mobillama_v.config import DecoderConfig
from mobillama_v.errors import PromptError
from mobillama_v.prefix_cache import CachedPrompt, PrefixCache, PrefixPlan, plan_prefixes
from mobillama_v.prompt import Encoded
from mobillama_v.sampling import Array, TokenLogProb, check_finite, log_prob, penalize, random_for, sample
from mobillama_v.sampling import Sampling as Sampling  # what callers give with their prompts

_REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not a whole character yet


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
    log_probs: list[TokenLogProb] = field(default_factory=list)


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


class Prompt(NamedTuple):
    """A prompt as an engine takes it: ids with image slots, and the visual tokens [P',D] of its images in order."""

    encoded: Encoded
    images: Sequence[Any] = ()


class Scores(NamedTuple):
    """How likely an answer of N tokens is after each of B prompts."""

    log_probs: Array
    """Natural logarithm of each token's probability, [B,N]."""
    greedy: Array
    """Whether each token is the likeliest at its place, [B,N]."""


class Engine(ABC):
    """What runs a decoder of shape ``spec``.

    A sequence is an engine's own object: the keys and values of one prompt and its answer so far. Logits are numpy's,
    in fp32, whatever the engine computes with.
    """

    spec: DecoderConfig
    title: str
    """What computes, in a few words."""

    @abstractmethod
    def embed(self, prompt: Prompt) -> Any:
        """Embeddings [T,D] of a prompt, those of its images in their slots.

        Raises:
            PromptError: image slots and images disagree.
        """

    @abstractmethod
    def allocate(self, capacity: int) -> Any:
        """An empty sequence with room for ``capacity`` positions."""

    @abstractmethod
    def run(self, parts: Sequence[PrefixPlan]) -> Array:
        """Run what is left of B prompts into their sequences, in one pass; logits [B,V] after their last positions."""

    @abstractmethod
    def decode(self, sequences: Sequence[Any], tokens: Sequence[int]) -> Array:
        """Append one token to each of B sequences, in one pass; logits [B,V] for the next.

        The sequences may come from different calls of :meth:`prefill` and be of different lengths.
        """

    def detach(self, sequence: Any) -> Any:
        """The sequence as it should be kept: without the memory of others that ran with it."""
        return sequence

    def prefill(
        self, prompts: Sequence[Prompt], room: int, reuse: PrefixCache | None = None
    ) -> tuple[list[Any], Array]:
        """Run B prompts.

        What a prompt shares with the start of another of the batch, or of one in ``reuse``, is copied and not run.

        Args:
            prompts: of any lengths.
            room: new tokens that each may get; fewer where the context ends.
            reuse: prompts of earlier calls; these are added to it.

        Returns:
            A sequence for each prompt, and logits [B,V] for its first new token.
        """
        context = self.spec.max_position_embeddings
        entries = [
            CachedPrompt(self.embed(each), self.allocate(min(len(each.encoded.input_ids) + room, context)))
            for each in prompts
        ]
        plans = plan_prefixes(entries, reuse.prompts() if reuse else [])
        logits = np.empty((len(prompts), self.spec.vocab_size), np.float32)
        for turn in range(1 + max(plan.turn for plan in plans)):
            some = [i for i, plan in enumerate(plans) if plan.turn == turn]
            logits[some] = self.run([plans[i] for i in some])
        if reuse:
            reuse.add([CachedPrompt(each.embeds, self.detach(each.sequence)) for each in entries[-reuse.size :]])
        return [each.sequence for each in entries], logits

    def score(self, prompts: Sequence[Prompt], answer: Sequence[int]) -> Scores:
        """How likely the N tokens of ``answer`` are after each of B prompts.

        Raises:
            CheckpointError: as :func:`check_finite`.
        """
        sequences, logits = self.prefill(prompts, len(answer))
        log_probs, greedy = [], []
        for i, token in enumerate(answer):
            if i:
                logits = self.decode(sequences, [answer[i - 1]] * len(prompts))
            check_finite(logits)
            shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
            log_probs.append(shifted[:, token] - np.log(np.exp(shifted).sum(-1)))
            greedy.append(logits.argmax(-1) == token)
        return Scores(np.stack(log_probs, -1), np.stack(greedy, -1))


class Generation(Iterator[list[str]]):
    """B prompts being answered. Iterate it for the new text of every row (often empty), a step at a time.

    The first step runs the prompts. Between two steps the next tokens are chosen and nothing is computed:
    :func:`decode_step` may run them together with those of other generations, else the next step runs them alone.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Detokenizer,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        reuse: PrefixCache | None = None,
    ) -> None:
        """Prepare; nothing is run yet.

        Args:
            engine: runs the decoder.
            tokenizer: decodes ids and names the end token.
            prompts: B of any lengths; each leaves room for an answer in the context.
            sampling: how to choose tokens and when to stop.
            reuse: prompts of earlier calls, whose prefixes need not run again.

        Raises:
            PromptError: a prompt fills the context.
        """
        context = engine.spec.max_position_embeddings
        lengths = [len(prompt.encoded.input_ids) for prompt in prompts]
        if max(lengths) >= context:
            raise PromptError(f"the prompt has {max(lengths)} tokens and the model's context is {context}; shorten it.")
        self.engine, self.sampling = engine, sampling
        self.completions = [Completion() for _ in prompts]
        self._tokenizer, self._prompts, self._reuse = tokenizer, prompts, reuse
        self._budgets = [min(sampling.max_new_tokens, context - length) for length in lengths]
        self._texts = [TextStream(tokenizer, sampling.stop) for _ in prompts]
        self._random = random_for(sampling)
        self._deadline = math.inf
        self._rows = list(range(len(prompts)))  # those that go on
        self._sequences: list[Any] = []
        self._logits: Array | None = None
        self.tokens: list[int] = []
        """Tokens of the rows that go on, chosen and not run yet."""
        self.prefill_seconds = self.decode_seconds = 0.0
        """Up to the first new token, and from there to the last."""
        self._start = 0.0

    @property
    def sequences(self) -> list[Any]:
        """The engine's sequences of the rows that go on."""
        return [self._sequences[row] for row in self._rows]

    def set_logits(self, logits: Array) -> None:
        """Take the logits [len(tokens),V] that follow :attr:`tokens`, which have run."""
        self._logits, self.tokens = logits, []

    def close(self) -> None:
        """Free what the rows hold; no row goes on."""
        self._rows, self._sequences, self._logits, self.tokens = [], [], None, []

    def __next__(self) -> list[str]:
        if not self._rows:
            raise StopIteration
        if self._logits is None and not self.tokens:
            self._start = time.perf_counter()
            self._deadline = time.monotonic() + self.sampling.max_seconds
            self._sequences, self._logits = self.engine.prefill(
                self._prompts, self.sampling.max_new_tokens, self._reuse
            )
        elif self.tokens:
            decode_step([self])
        assert self._logits is not None
        check_finite(self._logits)
        answers = [self.completions[row].ids for row in self._rows]
        tokens = sample(penalize(self._logits, answers, self.sampling), self.sampling, self._random)
        if (count := self.sampling.top_log_probs) is not None:
            for row, token, logits in zip(self._rows, tokens, self._logits, strict=True):
                self.completions[row].log_probs.append(log_prob(logits, token, count))
        late = time.monotonic() >= self._deadline
        pieces, rows, following = [""] * len(self.completions), [], []
        for row, token in zip(self._rows, tokens, strict=True):
            pieces[row] = self._push(row, token, late=late)
            if self.completions[row].finish_reason is None:
                rows.append(row)
                following.append(token)
        self._rows, self.tokens, self._logits = rows, following, None
        if not rows:
            self.close()
        seconds = time.perf_counter() - self._start
        self.prefill_seconds = self.prefill_seconds or seconds
        self.decode_seconds = seconds - self.prefill_seconds
        return pieces

    def _push(self, row: int, token: int, *, late: bool) -> str:
        """Give a row its token, and end the row if this was its last; the text that became certain."""
        completion, text, piece = self.completions[row], self._texts[row], ""
        if token == self._tokenizer.eos_id:
            completion.finish_reason = "stop"
        else:
            completion.ids.append(token)
            piece = text.push(token)
            if text.stopped:
                completion.finish_reason = "stop"
            elif late or len(completion.ids) == self._budgets[row]:
                completion.finish_reason = "length"
        if completion.finish_reason:
            piece += text.flush()
        completion.text = text.text
        return piece


def decode_step(generations: Sequence[Generation]) -> None:
    """Run the tokens that these generations have chosen, those of one engine in one pass.

    Raises:
        Exception: as the engine does; what has not run can be run again.
    """
    waiting = [each for each in generations if each.tokens]
    for engine in {id(each.engine): each.engine for each in waiting}.values():
        batch = [each for each in waiting if each.engine is engine]
        sequences = [sequence for each in batch for sequence in each.sequences]
        logits = engine.decode(sequences, [token for each in batch for token in each.tokens])
        done = 0
        for each in batch:
            begin, done = done, done + len(each.tokens)
            each.set_logits(logits[begin:done])


def generate(engine: Engine, tokenizer: Detokenizer, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
    """Answer B prompts; arguments and errors as of :class:`Generation`."""
    generation = Generation(engine, tokenizer, prompts, sampling)
    for _ in generation:
        pass
    return generation.completions

"""The session layer under the demo and the server: models, limits, the queue, and pictures that are encoded once.

A request takes a ticket in the queue, or is refused. Its pictures are checked by their headers and decoded, a large one
at a time in the whole process, to the small square that the model sees; words are read before, in the whole picture.
Then comes its turn to be computed, where pictures that its owner has shown before cost nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from PIL import Image

from mobillama_v.assistant import Assistant
from mobillama_v.demo.image_cache import ImageCache
from mobillama_v.demo.limits import LimitError, Limits
from mobillama_v.demo.metrics import Metrics
from mobillama_v.demo.occlusion import importance, render
from mobillama_v.demo.scheduler import Finished, Scheduler, Ticket, Work
from mobillama_v.demo.workers import LARGE_PIXELS, Workers
from mobillama_v.errors import ModelNotFoundError
from mobillama_v.generate import Sampling
from mobillama_v.images import load_image
from mobillama_v.images.read import image_size
from mobillama_v.prompt import Message
from mobillama_v.reply import EncodedImage, Reply, ReplyStream


@dataclass(frozen=True)
class Picture:
    """The bytes of a picture's file, and what messages call it."""

    data: bytes
    name: str

    @cached_property
    def digest(self) -> bytes:
        """What tells its content from another's."""
        return hashlib.sha256(self.data).digest()

    @cached_property
    def pixels(self) -> int:
        """How many pixels its header says it has.

        Raises:
            ImageError: it is not a picture.
        """
        width, height = image_size(self.data, self.name)
        return width * height


@dataclass(frozen=True)
class Decoded:
    """A picture as small as the model sees it, and the words that were read in the whole one (None: nothing reads)."""

    square: Image.Image
    words: tuple[str, ...] | None


class Stopped(Exception):
    """The ticket was left, or the server shut down, before the answer ended."""


class Service:
    """Answers within limits; shared by all users, of whom it keeps nothing but encoded pictures for a while."""

    def __init__(self, models: dict[str, Callable[[], Assistant]], limits: Limits | None = None) -> None:
        """Take the models' loaders, by the names that users see; the first is the default. Loads nothing."""
        self.limits = limits or Limits()
        self.scheduler = Scheduler(self.limits)
        self.seen = ImageCache()
        self.metrics = Metrics(self.scheduler)
        self._loaders = models
        self._loaded: dict[str, Assistant] = {}
        self._loading = threading.Lock()
        self.workers = Workers()

    @property
    def models(self) -> list[str]:
        """The names of the models, the default first."""
        return list(self._loaders)

    def assistant(self, name: str) -> Assistant:
        """The model ``name``, loaded if it is not yet.

        Raises:
            ModelNotFoundError: no model of that name is served.
            MobiLlamaVError: as :func:`mobillama_v.load` does.
        """
        if name not in self._loaders:
            raise ModelNotFoundError(f"there is no model {name!r} here: {', '.join(self.models)}.")
        if name not in self._loaded:  # who asks for another model does not wait until this one is loaded
            with self._loading:
                if name not in self._loaded:
                    self._loaded[name] = self._loaders[name]()
        return self._loaded[name]

    def check(self, name: str, messages: Sequence[Message], pictures: Sequence[Picture], sampling: Sampling) -> None:
        """Refuse a request for what can be known without decoding a picture.

        Raises:
            LimitError: it is over the limits.
            PromptError: it is no conversation, or longer than the model's context.
            ModelNotFoundError: no such model.
        """
        limits, pixels = self.limits, 0
        self.check_count(len(pictures))
        for picture in pictures:
            if len(picture.data) > limits.max_bytes:
                raise LimitError(
                    f"{picture.name} has {len(picture.data):,} bytes; at most {limits.max_bytes:,} are allowed."
                )
            pixels += picture.pixels
            if pixels > limits.max_request_pixels:
                raise LimitError(
                    f"the conversation's pictures have more than {limits.max_request_pixels:,} pixels together; "
                    "make them smaller."
                )
        if sampling.max_new_tokens > limits.max_new_tokens:
            raise LimitError(
                f"an answer of {sampling.max_new_tokens} tokens was asked for; at most {limits.max_new_tokens} are "
                "allowed."
            )
        self.assistant(name).prompt_tokens(len(pictures), list(messages))

    def check_count(self, pictures: int) -> None:
        """Refuse a conversation for the number of its pictures, before they are read.

        Raises:
            LimitError: there are too many.
        """
        if pictures > self.limits.max_images:
            raise LimitError(f"the conversation has {pictures} pictures; at most {self.limits.max_images} are allowed.")

    async def answer(
        self,
        ticket: Ticket,
        name: str,
        messages: Sequence[Message],
        pictures: Sequence[Picture],
        sampling: Sampling,
        choices: int = 1,
    ) -> AsyncIterator[str | Reply]:
        """Answer, giving text as it comes (often none) and at last the whole :class:`Reply`; then the ticket is left.

        Of several ``choices`` each comes so, one after the other.

        Args:
            ticket: from :meth:`Scheduler.enter`; leaving it ends the answer before its next token.
            name: a model.
            messages: the conversation, with a slot for each picture.
            pictures: in the order of the slots.
            sampling: within the limits; its ``max_seconds`` is lowered to theirs. Each choice has a seed of its own.
            choices: how many answers.

        Raises:
            MobiLlamaVError: as :meth:`check`, and ImageError for a picture that cannot be read.
            Stopped: the ticket was left before the answer ended.
        """
        start = time.perf_counter()
        outcome, first = "stopped", True
        try:
            assistant, decoded = await self._prepared(ticket, name, messages, pictures, sampling)
            seconds = min(sampling.max_seconds, self.limits.max_seconds) / choices
            seeds = [None if sampling.seed is None else sampling.seed + i for i in range(choices)]
            each = [dataclasses.replace(sampling, max_seconds=seconds, seed=seed) for seed in seeds]
            work = partial(self._work, assistant, ticket.owner, name, list(messages), pictures, decoded, each)
            async for item in _items(ticket, work):
                if isinstance(item, Reply):
                    outcome = item.finish_reason
                    self.metrics.prompt_tokens.inc(item.prompt_tokens)
                    self.metrics.new_tokens.inc(item.new_tokens)
                elif first:
                    first = False
                    self.metrics.first_token.observe(time.perf_counter() - start)
                yield item
        except Exception as error:
            outcome = "stopped" if isinstance(error, Stopped) else "error"
            raise
        finally:
            ticket.leave()
            self.metrics.answers.labels(outcome).inc()
            self.metrics.answer.observe(time.perf_counter() - start)

    async def explain(
        self, ticket: Ticket, name: str, messages: Sequence[Message], pictures: Sequence[Picture], answer: str
    ) -> AsyncIterator[Image.Image]:
        """Show which parts of the last picture an answer depended on, a row of them at a time; the last is whole.

        Arguments and errors as in :meth:`answer`; there must be a picture.
        """
        try:
            assistant, decoded = await self._prepared(ticket, name, messages, pictures, Sampling(1))
            last = (decoded[-1] or await self._decoded(ticket, assistant, pictures[-1], read=False)).square

            def work() -> Iterator[Image.Image]:
                images = list(self._images(assistant, ticket.owner, name, pictures, decoded))
                for found in importance(assistant, messages, images, last, answer):
                    yield render(last, found)

            async for item in _items(ticket, work):
                yield item
        finally:
            ticket.leave()

    def close(self, seconds: float = 0.0) -> None:
        """Take no request any more, let what runs go on for up to ``seconds``, then stop it."""
        self.scheduler.close(seconds)
        self.workers.close()

    async def _prepared(
        self, ticket: Ticket, name: str, messages: Sequence[Message], pictures: Sequence[Picture], sampling: Sampling
    ) -> tuple[Assistant, list[Decoded | None]]:
        """The model of a request that was checked, and its pictures decoded; None where one is in the cache."""
        await asyncio.to_thread(self.assistant, name)  # it may have to be loaded
        await self.workers.run(False, self.check, name, messages, pictures, sampling)
        assistant, decoded = self.assistant(name), list[Decoded | None]()
        for picture in pictures:
            cached = await self.workers.run(False, self._cached, ticket.owner, name, picture)
            decoded.append(None if cached else await self._decoded(ticket, assistant, picture))
        return assistant, decoded

    def _cached(self, owner: str, name: str, picture: Picture) -> EncodedImage | None:
        return self.seen.get(owner, (name, picture.digest))

    async def _decoded(self, ticket: Ticket, assistant: Assistant, picture: Picture, *, read: bool = True) -> Decoded:
        """The picture as small as the model sees it, and its words if they are to be ``read``.

        Raises:
            Stopped: the ticket was left before its turn to be decoded came.
        """

        def decode() -> Decoded:
            if ticket.left:
                raise Stopped
            return self._decode(assistant, picture, read)

        return await self.workers.run(picture.pixels > LARGE_PIXELS, decode)

    def _decode(self, assistant: Assistant, picture: Picture, read: bool = True) -> Decoded:
        limit, size = self.limits.max_pixels, assistant.read_size if read else assistant.spec.image.size
        image = load_image(picture.data, max_pixels=limit, name=picture.name, target=size)
        # The model's own transform leaves the square as it is.
        return Decoded(assistant.spec.image.apply(image), assistant.read_words(image) if read else None)

    def _work(
        self,
        assistant: Assistant,
        owner: str,
        name: str,
        messages: list[Message],
        pictures: Sequence[Picture],
        decoded: list[Decoded | None],
        samplings: list[Sampling],
    ) -> Iterator[ReplyStream | Reply]:
        images = list(self._images(assistant, owner, name, pictures, decoded))
        fresh = sum(seen.seconds for seen, each in zip(images, decoded, strict=True) if each is not None)
        for sampling in samplings:
            answer = assistant.stream(images, messages, sampling)
            yield answer  # the scheduler computes its pieces
            reply = answer.reply
            yield dataclasses.replace(reply, timings=dataclasses.replace(reply.timings, images=fresh))

    def _images(
        self,
        assistant: Assistant,
        owner: str,
        name: str,
        pictures: Sequence[Picture],
        decoded: list[Decoded | None],
    ) -> Iterator[EncodedImage]:
        """The pictures encoded, where they are not in the cache."""
        for picture, each in zip(pictures, decoded, strict=True):
            seen = self._cached(owner, name, picture)
            if seen is None:
                each = each or self._decode(assistant, picture)  # if it was not, it was in the cache a moment ago
                seen = assistant.encode_image(each.square, each.words)
                self.seen.put(owner, (name, picture.digest), seen)
                self.metrics.pictures.inc()
            yield seen


async def _items(ticket: Ticket, work: Work) -> AsyncIterator[Any]:
    """What ``work`` computes at its ticket, as it comes."""
    items: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def put(item: Any) -> None:
        loop.call_soon_threadsafe(items.put_nowait, item)

    ticket.start(work, put)
    while not isinstance(item := await items.get(), Finished):
        yield item
    if item.error is not None:
        raise item.error
    if item.left:
        raise Stopped

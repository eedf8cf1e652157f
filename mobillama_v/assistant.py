"""Images and a conversation to a reply: the one thing behind the command line, the demo, the server and the evaluation.

>>> assistant = mobillama_v.load("nano")
>>> assistant.ask(["cat.jpg"], "What is this?").text

An image is encoded once: what :meth:`Assistant.encode_image` returns can be given wherever an image is wanted, and a
:class:`Chat` does so by itself.

Shapes: B rows, T positions, N images, P' visual tokens an image, D decoder width.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from PIL import Image

from mobillama_v.chat_templates import get_template
from mobillama_v.config import ModelConfig
from mobillama_v.conversation import Conversation, read_chat
from mobillama_v.errors import PromptError
from mobillama_v.generate import Engine, Generation, Prompt, Sampling, Scores
from mobillama_v.images import load_image
from mobillama_v.ocr import with_tokens
from mobillama_v.prefix_cache import PrefixCache
from mobillama_v.prompt import Encoded, Message, user
from mobillama_v.prompt import assistant as assistant_turn
from mobillama_v.reply import EncodedImage, Reply, ReplyStream, Timings, VisionEncoder
from mobillama_v.sampling import check_finite
from mobillama_v.tokenization import TextTokenizer

if TYPE_CHECKING:
    from mobillama_v.model.vlm import VisionLanguageModel
    from mobillama_v.ocr import Reader

Source: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | EncodedImage"
Question: TypeAlias = "str | Sequence[Message | dict[str, Any]]"
_KEPT_PROMPTS = 2  # with their keys and values, of chats that go on


@dataclass
class _Row:
    """One prompt, ready to run: its messages, ids [T] and slots, its images, and the seconds they took."""

    messages: Sequence[Message]
    encoded: Encoded
    images: list[EncodedImage]
    seconds: float

    @property
    def prompt(self) -> Prompt:
        """As an engine takes it."""
        return Prompt(self.encoded, [image.features for image in self.images])


class Assistant:
    """A loaded model; :func:`mobillama_v.load` makes it. It holds no conversation, so calls are independent."""

    def __init__(
        self,
        name: str,
        spec: ModelConfig,
        tokenizer: TextTokenizer,
        vision: VisionEncoder,
        engine: Engine,
        backend: str = "",
    ) -> None:
        """Put the parts together.

        Args:
            name: as it was asked for.
            spec: the model's configuration.
            tokenizer: of its decoder.
            vision: encodes its images.
            engine: runs its decoder.
            backend: which backends these are and why, in a line.
        """
        self.name, self.spec, self.tokenizer, self.vision, self.engine = name, spec, tokenizer, vision, engine
        self.backend = backend
        self.reader: Reader | None = None  # of the words in images, which then stand in the prompt
        self._prefixes = PrefixCache(_KEPT_PROMPTS)

    @property
    def device(self) -> str:
        """Where the model runs, by torch's name."""
        return self.vision.device

    @property
    def network(self) -> VisionLanguageModel:
        """The model in torch; reading it imports torch and loads the model where it runs without.

        Its decoder has no memory where the native engine runs a packed or large one.
        """
        return self.vision.network

    @property
    def context(self) -> int:
        """How many tokens a conversation may have, the answer included."""
        return self.spec.decoder.max_position_embeddings

    def encode_image(self, image: Source, words: tuple[str, ...] | None = None) -> EncodedImage:
        """Read and encode one image; one that was seen already is returned as it is.

        Args:
            image: to encode.
            words: that were read in it already, as :meth:`read_words` does.

        Raises:
            ImageError: it is missing, not readable, not an image, damaged or too large.
            CheckpointError: the model's weights are damaged, so that what it computes is not finite.
        """
        if isinstance(image, EncodedImage):
            return image
        start = time.perf_counter()
        picture = load_image(image, target=self.read_size if words is None else self.spec.image.size)
        features = self.vision.encode_image(self.spec.image(picture))
        check_finite(features)
        words = self.read_words(picture) if words is None else words
        return EncodedImage(features, time.perf_counter() - start, words)

    @property
    def read_size(self) -> int | None:
        """The side in pixels that images need to have; None where words are read in them: whole, then."""
        return self.spec.image.size if self.reader is None else None

    def read_words(self, picture: Image.Image) -> tuple[str, ...] | None:
        """The words in a picture of :attr:`read_size`; None without a reader."""
        return None if self.reader is None else tuple(self.reader.read(picture))

    def see(self, image: Source) -> EncodedImage:
        """The former name of :meth:`encode_image`; it goes in the version after next."""
        warnings.warn("Assistant.see is now Assistant.encode_image", DeprecationWarning, stacklevel=2)
        return self.encode_image(image)

    def ask(self, images: Sequence[Source], question: Question, sampling: Sampling | None = None) -> Reply:
        """Answer one question.

        Args:
            images: any number, also none; paths, bytes, streams, Pillow images or what :meth:`encode_image` returned.
            question: a text, which the images precede, or a conversation that ends with the user's turn, as
                :func:`~mobillama_v.conversation.read_chat` takes it, with a place for every image.
            sampling: greedy with at most 128 new tokens by default.

        Raises:
            ImageError: an image cannot be read.
            PromptError: the conversation is longer than the context (both numbers given), has no canonical form, or
                has another number of places than images.
        """
        return self.ask_batch([(images, question)], sampling)[0]

    def stream(self, images: Sequence[Source], question: Question, sampling: Sampling | None = None) -> ReplyStream:
        """:meth:`ask`, giving text as it comes; the errors are raised by this call and not by the iteration."""
        row = self._row(images, question)
        generation = self._generation([row], sampling)
        return ReplyStream(self._pieces(row, generation), generation)

    def ask_batch(
        self, prompts: Iterable[tuple[Sequence[Source], Question]], sampling: Sampling | None = None
    ) -> list[Reply]:
        """Answer several independent (images, question) pairs at once; arguments and errors as in :meth:`ask`.

        All run together, so memory grows with their number.
        """
        rows = [self._row(images, question) for images, question in prompts]
        if not rows:
            return []
        generation = self._generation(rows, sampling)
        for _ in generation:
            pass
        return [_reply(row, generation, i) for i, row in enumerate(rows)]

    def score(self, prompts: Sequence[tuple[Sequence[Source], Sequence[Message]]], answer: str) -> Scores:
        """How likely ``answer`` is after each of B conversations with their images.

        Returns:
            Log-probabilities of the answer's N tokens, the last of which ends the answer, and whether greedy decoding
            would choose them.

        Raises:
            ImageError: an image cannot be read.
            PromptError: as :meth:`ask`; or a conversation with the answer is longer than the context.
        """
        rows = [self._row(images, messages) for images, messages in prompts]
        whole = self._encode_canonical([*rows[0].messages, assistant_turn(answer)], self.context).input_ids
        return self.engine.score([row.prompt for row in rows], whole[len(rows[0].encoded.input_ids) :])

    def chat(self, images: Sequence[Source] = ()) -> Chat:
        """A conversation that begins with these images (also none).

        Raises:
            ImageError: an image cannot be read.
        """
        chat = Chat(self)
        for image in images:
            chat.add_image(image)
        return chat

    def prompt_tokens(self, images: int, question: Question) -> int:
        """How many tokens a prompt with this many images has; errors as in :meth:`ask`, found without an image."""
        return len(self._encode(read_chat(question, [...] * images).fill(())).input_ids)

    def _row(self, images: Sequence[Source], question: Question) -> _Row:
        read = read_chat(question, images).fill(())
        encoded = self._encode(read)
        new = [not isinstance(image, EncodedImage) for image in read.images]
        seen = [self.encode_image(image) for image in read.images]
        if any(image.words is not None for image in seen):
            read = dataclasses.replace(read, messages=_with_words(read.messages, seen))
            encoded = self._encode(read)
        return _Row(
            read.messages, encoded, seen, sum(each.seconds for each, fresh in zip(seen, new, strict=True) if fresh)
        )

    def _encode(self, read: Conversation) -> Encoded:
        if read.messages[-1].role != "user":
            raise PromptError("the conversation ends with the assistant's turn and must end with the user's.")
        encoded = self._encode_canonical(read.messages, self.context)
        if len(encoded.input_ids) >= self.context:
            raise PromptError(
                f"the conversation has {len(encoded.input_ids)} tokens and the model's context is {self.context}, with "
                "room needed for the answer; shorten it or start a new one."
            )
        return encoded

    def encode_messages(self, messages: Sequence[Message], max_length: int | None = None) -> Encoded:
        """A conversation in the model's template, after :func:`~mobillama_v.conversation.read_chat`.

        Raises:
            PromptError: it has no canonical form, or more than ``max_length`` tokens.
        """
        return self._encode_canonical(read_chat(messages).messages, max_length)

    def _encode_canonical(self, messages: Sequence[Message], max_length: int | None = None) -> Encoded:
        tokens = self.vision.tokens_per_image
        template = get_template(self.spec.template)
        return template.encode(list(messages), self.tokenizer, tokens_per_image=tokens, max_length=max_length)

    def _generation(self, rows: list[_Row], sampling: Sampling | None) -> Generation:
        sampling = sampling or Sampling()
        sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *get_template(self.spec.template).stop))
        return Generation(self.engine, self.tokenizer, [row.prompt for row in rows], sampling, self._prefixes)

    def _pieces(self, row: _Row, generation: Generation) -> Iterator[tuple[str, Reply | None]]:
        begun = False
        for (piece,) in generation:
            text = piece if begun else piece.lstrip()  # a template puts a space before the answer
            begun = begun or bool(text)
            yield text, None
        if generation.completions[0].finish_reason:
            yield "", _reply(row, generation, 0)


@dataclass
class Chat:
    """A conversation about images; each image is encoded once, when it is added.

    ``messages`` and ``images`` are what has been said and shown; images that are added go before the next question. A
    turn that fails or is broken off leaves the conversation as it was.
    """

    assistant: Assistant
    messages: list[Message] = field(default_factory=list)
    images: list[EncodedImage] = field(default_factory=list)
    waiting: list[EncodedImage] = field(default_factory=list)

    def add_image(self, image: Source) -> None:
        """Show an image with the next question.

        Raises:
            ImageError: it cannot be read; the conversation goes on without it.
        """
        self.waiting.append(self.assistant.encode_image(image))

    def clear(self) -> None:
        """Forget everything, the images too."""
        self.messages.clear()
        self.images.clear()
        self.waiting.clear()

    def ask(self, text: str, sampling: Sampling | None = None) -> Reply:
        """Say ``text`` and return the answer.

        Raises:
            PromptError: the conversation has become longer than the context.
        """
        answer = self.stream(text, sampling)
        for _ in answer:
            pass
        return answer.reply

    def stream(self, text: str, sampling: Sampling | None = None) -> ReplyStream:
        """:meth:`ask`, giving text as it comes. The turn is part of the conversation once the stream has ended."""
        messages = [*self.messages, user(text, images=len(self.waiting))]
        images = [*self.images, *self.waiting]
        answer = self.assistant.stream(images, messages, sampling)
        return ReplyStream(self._remembered(answer, messages, images), answer.generation)

    def _remembered(
        self, answer: ReplyStream, messages: list[Message], images: list[EncodedImage]
    ) -> Iterator[tuple[str, Reply | None]]:
        for piece in answer:
            yield piece, None
        if not answer.generation.completions[0].finish_reason:  # it was broken off
            return
        self.messages, self.images, self.waiting = [*messages, assistant_turn(answer.reply.text)], images, []
        yield "", answer.reply


def _with_words(messages: Sequence[Message], images: Sequence[EncodedImage]) -> tuple[Message, ...]:
    """The conversation with the words of its images after the text of the turn that shows them."""
    shown, found = iter(images), []
    for message in messages:
        words = [word for image in itertools.islice(shown, message.images) for word in image.words or ()]
        if message.images and isinstance(message.content[-1], str):
            last = with_tokens(message.content[-1], words)
            message = dataclasses.replace(message, content=(*message.content[:-1], last))
        found.append(message)
    return tuple(found)


def _reply(row: _Row, generation: Generation, index: int) -> Reply:
    completion = generation.completions[index]
    assert completion.finish_reason is not None
    return Reply(
        text=completion.text.strip(),
        finish_reason=completion.finish_reason,
        prompt_tokens=len(row.encoded.input_ids),
        image_tokens=sum(row.encoded.image_mask),
        new_tokens=len(completion.ids),
        timings=Timings(row.seconds, generation.prefill_seconds, generation.decode_seconds),
        log_probs=tuple(completion.log_probs[: len(completion.ids)]),
    )

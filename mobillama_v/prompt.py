"""Conversations to token ids, labels and image slots: the only chat template, for training and inference.

Every segment is tokenized on its own and the ids are concatenated, so that the supervised span is known by
construction and no tokenization mismatch can move it (LLaVA searches for it afterwards). Image slots are marked by a
mask, never by a token: ``<image>`` or ``</s>`` typed by a user is only text.

Templates are LLaVA-1.5's (arXiv 2310.03744): ``plain`` is image, caption, newline; ``v1`` is
``SYSTEM USER: <image>\\nquestion ASSISTANT: answer</s>USER: …``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

from mobillama_v.errors import PromptError

IGNORE_INDEX = -100
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Slot(Enum):
    """The place of one image in a message."""

    IMAGE = "image"


@dataclass(frozen=True)
class Message:
    """One turn: who speaks, and text with places for images."""

    role: Literal["system", "user", "assistant"]
    content: tuple[str | Slot, ...]

    @property
    def images(self) -> int:
        """How many images the message has places for."""
        return sum(part is Slot.IMAGE for part in self.content)

    @property
    def text(self) -> str:
        """The text alone."""
        return "".join(part for part in self.content if isinstance(part, str))


def user(text: str, *, images: int = 0) -> Message:
    """A user's turn, its images before the text and each on a line of its own, as LLaVA puts them."""
    content: list[str | Slot] = []
    for _ in range(images):
        content += [Slot.IMAGE, "\n"]
    return Message("user", (*content, text))


def assistant(text: str) -> Message:
    """An assistant's turn."""
    return Message("assistant", (text,))


class Tokenizer(Protocol):
    """What a template needs of a tokenizer; see :class:`~mobillama_v.tokenization.TextTokenizer`."""

    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        ...


@dataclass
class Encoded:
    """A conversation as a model takes it; the three lists have the same length T.

    ``input_ids`` holds the end-of-sequence id at image slots (any id would do), ``labels`` is -100 where nothing is
    learnt and aligned with the inputs (the model shifts), ``image_mask`` is True at image slots.
    """

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    image_mask: list[bool] = field(default_factory=list)

    def add(self, ids: list[int], *, supervised: bool = False) -> None:
        """Append text."""
        self.input_ids += ids
        self.labels += ids if supervised else [IGNORE_INDEX] * len(ids)
        self.image_mask += [False] * len(ids)

    def add_slots(self, count: int, filler: int) -> None:
        """Append the slots of one image."""
        self.input_ids += [filler] * count
        self.labels += [IGNORE_INDEX] * count
        self.image_mask += [True] * count


def encode(
    messages: list[Message],
    tokenizer: Tokenizer,
    *,
    template: Literal["plain", "v1"],
    tokens_per_image: int,
    max_length: int | None = None,
) -> Encoded:
    """Encode a conversation.

    One that ends with the user's turn is a prompt to be answered, one that ends with the assistant's is a training
    sample. Supervised are the assistant's texts and what ends them: ``</s>`` in ``v1``, the newline in ``plain``.

    Raises:
        PromptError: no turns, roles out of order, or more than ``max_length`` tokens, both numbers given.
    """
    body = messages[1:] if messages and messages[0].role == "system" else messages
    _check_roles(body)
    out = Encoded()
    out.add([tokenizer.bos_id])
    if template == "plain":
        _encode_plain(body, tokenizer, tokens_per_image, out)
    else:
        system = messages[0].text if body is not messages else SYSTEM
        _encode_v1(system, body, tokenizer, tokens_per_image, out)
    if max_length is not None and len(out.input_ids) > max_length:
        raise PromptError(
            f"the conversation has {len(out.input_ids)} tokens and the model's context is {max_length}; "
            "shorten it or start a new one."
        )
    return out


def _check_roles(body: list[Message]) -> None:
    if not body:
        raise PromptError("the conversation has no turns; give at least one question.")
    for i, message in enumerate(body):
        expected = "assistant" if i % 2 else "user"
        if message.role != expected:
            raise PromptError(
                f"turn {i + 1} is the {message.role}'s and must be the {expected}'s: a conversation starts with the "
                "user (after an optional system message) and alternates."
            )


def _encode_parts(parts: list[str | Slot], tokenizer: Tokenizer, tokens_per_image: int, out: Encoded) -> None:
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            out.add(tokenizer.encode(text))
            out.add_slots(tokens_per_image, tokenizer.eos_id)
            text = ""
    out.add(tokenizer.encode(text))


def _encode_plain(body: list[Message], tokenizer: Tokenizer, tokens_per_image: int, out: Encoded) -> None:
    """Image and caption only: what the user says beside the image is not part of the template."""
    for message in body:
        if message.role == "user":
            for _ in range(message.images):
                out.add_slots(tokens_per_image, tokenizer.eos_id)
        else:
            out.add(tokenizer.encode(message.text + "\n"), supervised=True)


def _encode_v1(system: str, body: list[Message], tokenizer: Tokenizer, tokens_per_image: int, out: Encoded) -> None:
    lead = f"{system} "
    for message in body:
        if message.role == "user":
            parts = [f"{lead}USER: ", *message.content, " ASSISTANT:"]
            _encode_parts(parts, tokenizer, tokens_per_image, out)
            lead = ""
        else:
            out.add([*tokenizer.encode(f" {message.text}"), tokenizer.eos_id], supervised=True)

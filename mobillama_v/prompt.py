"""Conversations to token ids, labels and image slots, by a template: the only way, for training and inference.

Every segment is tokenized on its own and the ids are concatenated, so that the supervised span is known by
construction and no tokenization mismatch can move it (LLaVA searches for it afterwards). Image slots are marked by a
mask, never by a token: ``<image>`` or ``</s>`` typed by a user is only text.

The templates stand in :mod:`mobillama_v.chat_templates`.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

from mobillama_v.errors import PromptError

IGNORE_INDEX = -100
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""What LLaVA-1.5 puts after a question that wants a short answer (arXiv 2310.03744, table 7)."""
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Slot(Enum):
    """The place of one image in a message."""

    IMAGE = "image"


@dataclass(frozen=True)
class Special:
    """A special token in a template, by its text; what a user types never becomes one."""

    text: str


@dataclass(frozen=True)
class Message:
    """One turn: who speaks, and text with places for images; an answer that is not ``learned`` is not supervised."""

    role: Literal["system", "user", "assistant"]
    content: tuple[str | Slot, ...]
    learned: bool = True

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


def arrange(content: Sequence[str | Slot]) -> tuple[str | Slot, ...]:
    """Put pictures where models are trained to see them: before the text, each on a line of its own.

    LLaVA moves a lone picture there wherever it stands. Several are moved where all of them follow the text. Pictures
    among the text are what it speaks of. They stay, with a blank or a line break between them and the text.
    """
    parts = [part for part in content if part is Slot.IMAGE or (isinstance(part, str) and part.strip())]
    slots = [part is Slot.IMAGE for part in parts]
    images = sum(slots)
    texts = [part for part in parts if isinstance(part, str)]
    if images < 2 or all(slots[:images]) or all(slots[-images:]):
        return user(join_texts(texts).strip(), images=images).content
    merged: list[str | Slot] = [parts[0].lstrip() if isinstance(parts[0], str) else parts[0]]
    for before, part in itertools.pairwise(parts):
        text = ("" if _apart(before, part) else "\n") + (part if isinstance(part, str) else "")
        if isinstance(last := merged[-1], str):
            merged[-1] = last + text
        elif text:
            merged.append(text)
        if isinstance(part, Slot):
            merged.append(part)
    if isinstance(last := merged[-1], str):
        merged[-1] = last.rstrip()
    return tuple(merged)


def _apart(left: str | Slot, right: str | Slot) -> bool:
    sides = (left[-1:] if isinstance(left, str) else "", right[:1] if isinstance(right, str) else "")
    return any(side.isspace() for side in sides)


def join_texts(texts: Iterable[str]) -> str:
    """Texts one after the other, with a line break where no white space parts them."""
    out = ""
    for text in texts:
        out += text if not out or _apart(out, text) else "\n" + text
    return out


class Tokenizer(Protocol):
    """What a template needs of a tokenizer; see :class:`~mobillama_v.tokenization.TextTokenizer`."""

    bos_id: int
    eos_id: int
    longest_token: int
    """Bytes of the longest token."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        ...

    def special_id(self, text: str) -> int:
        """Id of the special token ``text``; raises :class:`~mobillama_v.errors.ConfigError` where there is none."""
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


class Template(ABC):
    """How a conversation becomes tokens, and which texts end an answer."""

    jinja: str
    """The same for programs that read a ``chat_template.jinja``: equal for turns that alternate."""
    stop: tuple[str, ...] = ()
    """Texts after which an answer is over, besides the end-of-sequence token."""
    system: str = SYSTEM
    """What a conversation says as its system message if it has none."""
    begins: bool = True
    """Whether a conversation begins with the beginning-of-sequence token."""
    specials: tuple[str, ...] = ()
    """Special tokens that it writes, besides those that begin and end a sequence."""

    @abstractmethod
    def question(self, message: Message, system: str | None) -> list[str | Slot | Special]:
        """What stands for a user's turn; ``system`` is the system's sentence before the first turn, else None."""

    @abstractmethod
    def answer(self, text: str, tokenizer: Tokenizer, *, end: bool) -> list[int]:
        """Ids of an assistant's turn, with what ends it unless ``end`` is false."""

    def encode(
        self,
        messages: list[Message],
        tokenizer: Tokenizer,
        *,
        tokens_per_image: int,
        max_length: int | None = None,
        open_ended: bool = False,
    ) -> Encoded:
        """Encode a conversation in its canonical form (:mod:`mobillama_v.conversation`).

        One that ends with the user's turn is a prompt to be answered, one that ends with the assistant's is a training
        sample. Supervised are the assistant's texts and what ends them: ``</s>`` in ``v1``, the newline in ``plain``.

        Args:
            messages: the turns, after an optional system message.
            tokenizer: of the model.
            tokens_per_image: slots that one image takes.
            max_length: the longest conversation that is accepted, in tokens.
            open_ended: leave out what ends the last answer, which is then continued.

        Raises:
            PromptError: no turns, roles out of order, or more than ``max_length`` tokens, both numbers given.
        """
        body = messages[1:] if messages and messages[0].role == "system" else messages
        _check_roles(body)
        if max_length is not None:
            _check_bytes(messages, max_length, tokenizer)
        system: str | None = messages[0].text if body is not messages else self.system
        out = Encoded()
        if self.begins:
            out.add([tokenizer.bos_id])
        for message in body:
            if message.role == "user":
                _encode_parts(self.question(message, system), tokenizer, tokens_per_image, out)
                system = None
            else:
                end = not open_ended or message is not body[-1]
                out.add(self.answer(message.text, tokenizer, end=end), supervised=message.learned)
        self.check_length(out, max_length)
        return out

    @staticmethod
    def check_length(encoded: Encoded, max_length: int | None) -> None:
        """Refuse a conversation of more than ``max_length`` tokens.

        Raises:
            PromptError: it is longer; both numbers are given.
        """
        if max_length is not None and len(encoded.input_ids) > max_length:
            raise PromptError(
                f"the conversation has {len(encoded.input_ids)} tokens and the model's context is {max_length}; "
                "shorten it or start a new one."
            )


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


def _check_bytes(messages: list[Message], max_length: int, tokenizer: Tokenizer) -> None:
    """Refuse what cannot fit before it is tokenized, which takes minutes for the megabytes that a stranger may send."""
    most, texts = max_length * tokenizer.longest_token, [message.text for message in messages]
    size = sum(map(len, texts))
    if size <= most:  # else the characters alone are too many, and counting their bytes takes time
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    if size > most:
        raise PromptError(
            f"the conversation has at least {size:,} bytes of text, and the model's context is {max_length} tokens of "
            f"at most {tokenizer.longest_token} bytes; shorten it or start a new one."
        )


def _encode_parts(parts: list[str | Slot | Special], tokenizer: Tokenizer, tokens_per_image: int, out: Encoded) -> None:
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            out.add(tokenizer.encode(text))
            text = ""
            if isinstance(part, Slot):
                out.add_slots(tokens_per_image, tokenizer.eos_id)
            else:
                out.add([tokenizer.special_id(part.text)])
    out.add(tokenizer.encode(text))

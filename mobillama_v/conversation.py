"""The one normalizer of conversations and pictures: whatever people and files write, to one canonical form.

:func:`read_chat` reads what a person or a client sends, :func:`read_record` a record of a data file. Both take LLaVA's
and ShareGPT's turns (``from``/``value``), OpenAI's and Hugging Face's messages (``role``/``content``, a text or parts),
pairs (``user``/``assistant``, as the_cauldron has them), our own :class:`~mobillama_v.prompt.Message`, and a mapping
that holds a list of them (``conversations``, ``messages``, ``texts``) beside ``image`` or ``images``.

The canonical form: at most one system message, which comes first; then the user and the assistant by turns; pictures
where models are trained to see them (:func:`~mobillama_v.prompt.arrange`); texts without blanks around them. ``notes``
name what was changed, by constants of this module, so that they can be counted. What has no such form is refused with a
:class:`ConversationError`; no other exception comes out.

The processor and :class:`~mobillama_v.assistant.Assistant` read chats here. A server calls
``read_chat(body["messages"])`` and opens each of ``images``, a training or evaluation file ``read_record(record)``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from mobillama_v.errors import PromptError
from mobillama_v.prompt import Message, Slot, arrange, join_texts
from mobillama_v.tables import stray_picture

IMAGE_MARKER = "<image>"
"""The place of a picture in a record's text; in a chat it is only text."""
_SLICE = 1 << 20
MALFORMED, ORDER, EMPTY, COUNT = "not a record", "roles out of order", "empty answer", "images are not the markers"

MOVED = "pictures were put before the text"
PLACED = "pictures without a place were put before the first question"
NO_PICTURE = "an empty 'image' was taken for no picture"
MERGED = "neighboring turns of one role were merged"
SYSTEM_FIRST = "a later system message was put at the start"
NO_QUESTION = "an answer before the first question was left out"
NO_ANSWER = "an empty answer was left out"
TOOL = "a tool's result was taken for the user's words"
BLANKS = "blanks around an answer were removed"
NUMBER = "a number was taken for text"
UNLEARNED = "a turn of weight 0 is not learned"

_LISTS = ("conversations", "messages", "texts", "conversation")
_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function"), "tool"),
}
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_PICTURES = ("image", "image_url", "input_image")
_SOURCES = ("image", "image_url", "url", "path", "bytes", "base64", "data")


class ConversationError(PromptError):
    """A conversation has no canonical form; ``kind`` is one of MALFORMED, ORDER, EMPTY and COUNT."""

    def __init__(self, message: str, kind: str = MALFORMED) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Conversation:
    """The canonical form.

    ``images`` has an entry for each slot of ``messages`` in order: a path or address, a data URL, bytes, whatever else
    the caller gave, or None where the picture is still to be given (:meth:`fill`). ``notes`` name what was changed.
    """

    messages: tuple[Message, ...]
    images: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()

    def fill(self, images: Sequence[Any]) -> Conversation:
        """The conversation with ``images`` for the places that have no picture yet, in order.

        Raises:
            ConversationError: there are more or fewer such places.
        """
        empty = sum(image is None for image in self.images)
        if empty != len(images):
            raise ConversationError(
                f"the conversation has {empty} images to be filled in, and {len(images)} were given beside it; "
                "make them equal.",
                COUNT,
            )
        rest = iter(images)
        return dataclasses.replace(self, images=tuple(next(rest) if each is None else each for each in self.images))


@dataclass(frozen=True)
class _Place:
    """A picture's place: where the picture is, or None, and its number among pictures that are given beside."""

    source: Any = None
    index: int | None = None


_Part = str | _Place


@dataclass
class _Turn:
    role: str
    parts: list[_Part]
    number: int
    learned: bool = True


@dataclass
class _Reading:
    """What is found in one conversation."""

    turns: list[_Turn] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)  # an ordered set

    def note(self, note: str) -> None:
        self.notes[note] = None


def read_chat(chat: Any, images: Sequence[Any] = ()) -> Conversation:
    """Read a chat: a text, a list of messages, or a mapping that holds such a list.

    It may end with either role. An empty answer is left out, for a client sends one where an answer was broken off.

    Args:
        chat: as the module says; ``<image>`` in a text is only text.
        images: pictures given beside it. They fill its empty places; where it has no place at all, they come before
            the first question.

    Raises:
        ConversationError: it has no canonical form.
    """
    found = _Reading()
    _read(chat, found)
    found.images += images
    spoken = [turn for turn in found.turns if turn.role != "assistant" or _has_text(turn)]
    if len(spoken) < len(found.turns):
        found.turns = spoken
        found.note(NO_ANSWER)
    return _canonical(found, strict=bool(found.images))


def read_record(record: Any) -> Conversation:
    """Read a record of a data file; it ends with an answer, and all its places have pictures.

    ``<image>`` in a user's text is the place of a picture, unless the record has parts that are pictures.

    Raises:
        ConversationError: it has no canonical form, does not end with an answer, or has an empty one.
    """
    found = _Reading()
    _read(record, found)
    for turn in found.turns:
        if turn.role == "assistant" and not _has_text(turn):
            reason = f"turn {turn.number} is an empty answer; fill it or remove the turn and its question."
            raise ConversationError(reason, EMPTY)
    if not any(isinstance(part, _Place) for turn in found.turns for part in turn.parts):
        for turn in (turn for turn in found.turns if turn.role == "user"):
            turn.parts = [part for text in turn.parts for part in _split(str(text))]
    read = _canonical(found, strict=True)
    if read.messages[-1].role != "assistant":
        raise ConversationError(
            "the conversation does not end with an answer; nothing could be learned from its last turn.", ORDER
        )
    return read


def turns_of(record: Mapping[Any, Any]) -> Any:
    """What a mapping has for its turns; None where it has none, and so is no conversation."""
    return next((record[name] for name in _LISTS if record.get(name) is not None), None)


def _split(text: str) -> Iterator[_Part]:
    for i, piece in enumerate(text.split(IMAGE_MARKER)):
        if i:
            yield _Place()
        yield piece


def _has_text(turn: _Turn) -> bool:
    return any(isinstance(part, str) and part.strip() for part in turn.parts)


def _read(value: Any, found: _Reading) -> None:
    turns = value
    if isinstance(value, Mapping):
        turns = turns_of(value)
        if turns is None:
            raise ConversationError(f"the conversation has no list of turns; name it one of {', '.join(_LISTS[:3])}.")
        found.images = _pictures_beside(value, found)
        if isinstance(value.get("system"), str):
            found.turns.append(_Turn("system", [value["system"]], 0))
    if isinstance(turns, str):
        turns = [Message("user", (turns,))]
    if not isinstance(turns, (list, tuple)):
        raise ConversationError(f"a conversation is a list of turns, not a {type(turns).__name__}; write it as one.")
    for number, turn in enumerate(turns, 1):
        found.turns += _read_turn(turn, number, found)


def _pictures_beside(record: Mapping[Any, Any], found: _Reading) -> list[Any]:
    given = [record[name] for name in ("image", "images") if record.get(name) is not None]
    if len(given) == 2:
        raise ConversationError("the conversation has both 'image' and 'images'; keep one.")
    if not given:
        stray = stray_picture(record, ("id",))
        if stray:
            raise ConversationError(
                f"the conversation has no 'image', and its {stray[0]!r} names a picture ({stray[1]}); call it 'image'."
            )
        return []
    if isinstance(given[0], str) and not given[0].strip():
        found.note(NO_PICTURE)
        return []
    pictures = [_source(each) for each in (given[0] if isinstance(given[0], (list, tuple)) else given)]
    if any(each is None or isinstance(each, (bool, int, float, list, tuple, Mapping)) for each in pictures):
        raise ConversationError("its 'image' is neither a picture nor a list of pictures; write paths.")
    return pictures


def _source(value: Any) -> Any:
    """Where a picture is, taken out of the mapping that datasets, parts and OpenAI's requests wrap it in."""
    for _ in range(3):  # {"image_url": {"url": ...}}
        if not isinstance(value, Mapping):
            break
        key = next((key for key in _SOURCES if value.get(key) is not None), None)
        if key is None:
            return None
        value = value[key]
        if key in ("base64", "data") and isinstance(value, str) and not value.startswith("data:"):
            value = f"data:;base64,{value}"
    return None if isinstance(value, str) and not value.strip() else value


def _read_turn(turn: Any, number: int, found: _Reading) -> Iterator[_Turn]:
    if isinstance(turn, Message):
        if turn.images and turn.role != "user":
            _refuse_part(turn.role, number, "image")
        runs = itertools.groupby(turn.content, lambda part: isinstance(part, Slot))
        parts = [each for slots, run in runs for each in ([_Place() for _ in run] if slots else ["".join(run)])]  # type: ignore[arg-type]
        yield _Turn(turn.role, parts, number, turn.learned)
        return
    if not isinstance(turn, Mapping):
        raise ConversationError(f"turn {number} is no mapping with role and content; write it as one.")
    if "role" not in turn and "from" not in turn and "user" in turn:
        for each in ("user", "assistant"):
            if each in turn:
                yield _Turn(each, list(_parts(turn[each], each, number, found)), number)
        return
    said = turn["role"] if "role" in turn else turn.get("from")
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    key = next((key for key in ("content", "value") if key in turn), None)
    if said is None or (key is None and not turn.get("tool_calls")):
        raise ConversationError(f"turn {number} has no role and content (or from and value); write them.")
    if role is None:
        raise ConversationError(
            f"turn {number} is from {_short(said)}, a role that is unknown; use system, user or assistant."
        )
    parts = list(_parts(turn[key] if key else None, role, number, found))
    if role == "tool":
        found.note(TOOL)
        role = "user"
    weight = turn.get("weight")
    learned = role != "assistant" or not isinstance(weight, (bool, int, float)) or weight != 0
    if not learned:
        found.note(UNLEARNED)
    yield _Turn(role, parts, number, learned)


def _parts(content: Any, role: str, number: int, found: _Reading) -> Iterator[_Part]:
    if content is None and role == "assistant":  # it called tools
        return
    for part in content if isinstance(content, (list, tuple)) else [content]:
        if isinstance(part, Mapping):
            kind = part.get("type")
            if kind is None:
                kind = "text" if part.get("text") is not None else "image" if _source(part) is not None else None
            if isinstance(kind, str) and kind in _TEXTS and isinstance(part.get(_TEXTS[kind]), str):
                yield part[_TEXTS[kind]]
            elif isinstance(kind, str) and kind in _PICTURES and role in ("user", "tool"):
                index = part.get("index")
                yield _Place(_source(part), index if isinstance(index, int) and not isinstance(index, bool) else None)
            else:
                _refuse_part(role, number, kind)
        elif isinstance(part, str):
            yield part
        elif isinstance(part, (int, float)):
            yield _written(part, number)
            found.note(NUMBER)
        else:
            _refuse_part(role, number, type(part).__name__)


def _written(value: float, number: int) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:  # NaN, or more digits than Python writes
        raise ConversationError(f"turn {number} is a number that cannot be written; write it as text.") from None


def _refuse_part(role: str, number: int, kind: Any) -> NoReturn:
    raise ConversationError(
        f"turn {number}, the {role}'s, has a part that cannot be used ({_short(kind)}); parts are text, and in a "
        "user's turn pictures."
    )


def _short(value: Any) -> str:
    """A value as a message may quote it, whatever it is."""
    text = ascii(value) if isinstance(value, (str, bool, int, float, type(None))) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def _canonical(found: _Reading, *, strict: bool) -> Conversation:
    """The canonical form; ``strict``: all places get pictures now."""
    turns: list[_Turn] = []
    system: list[str] = []
    for turn in found.turns:
        if turn.role == "system":
            system += [str(part) for part in turn.parts]
            if turns:
                found.note(SYSTEM_FIRST)
        elif turns and turns[-1].role == turn.role:
            turns[-1].parts = [*turns[-1].parts, *turn.parts]
            turns[-1].learned &= turn.learned
            found.note(MERGED)
        elif not turns and turn.role == "assistant":
            found.note(NO_QUESTION)
        else:
            turns.append(turn)
    if not turns:
        raise ConversationError("the conversation has no turns; give at least one question.", ORDER)
    _place_pictures(turns, found, strict=strict)
    first = join_texts(text for text in system if text.strip()).strip()
    messages = [Message("system", (first,))] if first else []
    for turn in turns:
        if turn.role == "assistant":
            said = join_texts(str(part) for part in turn.parts if str(part).strip())
            if said != said.strip():
                found.note(BLANKS)
            messages.append(Message("assistant", (said.strip(),), turn.learned))
            continue
        given = [Slot.IMAGE if isinstance(p, _Place) else p for p in turn.parts if isinstance(p, _Place) or p.strip()]
        content = arrange(given)
        if isinstance(content[0], Slot) and not isinstance(given[0], Slot):
            found.note(MOVED)
        messages.append(Message("user", content))
    for message in messages:
        try:
            text = message.text
            for start in range(0, 0 if text.isascii() else len(text), _SLICE):  # other threads may run in between
                text[start : start + _SLICE].encode()
        except UnicodeEncodeError:
            raise ConversationError("a text holds half a character (\\ud800-\\udfff); remove it.") from None
    places = [part for turn in turns for part in turn.parts if isinstance(part, _Place)]
    return Conversation(tuple(messages), tuple(place.source for place in places), tuple(found.notes))


def _place_pictures(turns: list[_Turn], found: _Reading, *, strict: bool) -> None:
    """Give the pictures that stand beside the conversation to its places; without any place, to its first question."""
    places = [part for turn in turns for part in turn.parts if isinstance(part, _Place)]
    given = found.images
    if given and not places:
        turns[0].parts = [*map(_Place, given), *turns[0].parts]
        found.note(PLACED)
        return
    empty = [place for place in places if place.source is None]
    numbers = [place.index for place in empty if place.index is not None]
    if numbers and given and len(numbers) == len(empty) and set(numbers) == set(range(len(given))):
        given = [given[number] for number in numbers]
    elif (numbers and given) or (strict and len(empty) != len(given)):
        raise ConversationError(
            f"the conversation has {len(empty)} {IMAGE_MARKER} places and {len(given)} images; make them equal.", COUNT
        )
    rest = iter(given)
    for turn in turns:
        turn.parts = [
            _Place(next(rest, None)) if isinstance(part, _Place) and part.source is None else part
            for part in turn.parts
        ]

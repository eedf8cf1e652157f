"""Training records in LLaVA's JSON format, read into messages.

A file is a JSON list or JSON lines of ``{"id", "image": path or list of paths, "conversations": [{"from", "value"}]}``;
``from`` is ``human``, ``gpt`` or (first only) ``system``, ``<image>`` in a human turn is the place of an image, and a
record without ``image`` is text only. An error names the file and the record's id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mobillama_v.errors import DataError
from mobillama_v.prompt import Message, Slot, user
from mobillama_v.train.data.json_stream import record_texts

IMAGE_MARKER = "<image>"
MALFORMED, ORDER, EMPTY, COUNT = "not a record", "roles out of order", "empty answer", "images are not the markers"
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {"human": "user", "gpt": "assistant", "system": "system"}


class RecordError(DataError):
    """A record is not what the format says; ``kind`` is one of this module's constants."""

    def __init__(self, message: str, kind: str = MALFORMED) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Record:
    """One conversation; ``images`` are the paths of its image slots in order, as the file gives them."""

    id: str
    images: tuple[str, ...]
    messages: tuple[Message, ...]
    source: str

    @property
    def where(self) -> str:
        """File and id, for messages."""
        return f"{self.source}, record {self.id!r}"


def read_records(path: Path) -> Iterator[Record]:
    """Read a ``.json`` list or a file of JSON lines, one record at a time.

    Raises:
        DataError: the file cannot be read, is not JSON, or holds a record that is not what the format says.
    """
    for place, text in record_texts(path):
        yield parse_text(text, source=str(path), place=place)


def parse_text(text: str, *, source: str, place: str) -> Record:
    """Read one record from its JSON text; ``place`` in the file names it where it has no id.

    Raises:
        RecordError: as :func:`parse_record`, or the text is not JSON.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{source}, {place} is not valid JSON ({error}); fix it.") from error
    return parse_record(value, source=source, place=place)


def parse_record(value: Any, *, source: str, place: str) -> Record:
    """Check one record; ``place`` in the file names it where it has no id.

    Raises:
        RecordError: no conversation, an unknown role, roles out of order, an empty answer, or image places that are not
            as many as images.
    """
    if not isinstance(value, dict):
        raise RecordError(f"{source}, {place} is no mapping; each record is an object with an id.")
    name = str(value.get("id", place))
    where = f"{source}, record {name!r}"
    turns = value.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RecordError(f"{where} has no list of conversations; give it a human turn and a gpt turn.")
    messages = tuple(_message(turn, where, place) for place, turn in enumerate(turns))
    _check_order(messages, where)
    images = _images(value.get("image"), where)
    places = sum(message.images for message in messages)
    if places != len(images):
        reason = f"{where} has {places} {IMAGE_MARKER} markers and {len(images)} images; make them equal."
        raise RecordError(reason, COUNT)
    return Record(name, images, messages, source)


def _message(turn: Any, where: str, place: int) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise RecordError(f"{where}, turn {place + 1} is no object with 'from' and a text 'value'; write it as one.")
    try:
        turn["value"].encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"{where}, turn {place + 1} holds half a character (\\ud800-\\udfff); remove it.") from error
    speaker = turn.get("from")
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise RecordError(f"{where}, turn {place + 1} is from {turn.get('from')!r}; use one of {', '.join(_ROLES)}.")
    if role == "user":
        return _user_message(turn["value"])
    if role == "assistant" and not turn["value"].strip():
        reason = f"{where}, turn {place + 1} is an empty answer; fill it or remove the turn and its question."
        raise RecordError(reason, EMPTY)
    return Message(role, (turn["value"],))


def _user_message(text: str) -> Message:
    """A lone marker is put before the text wherever it stood, as LLaVA does; several stay where they are."""
    parts = text.split(IMAGE_MARKER)
    if len(parts) == 2:
        return user("".join(parts).strip(), images=1)
    content: list[str | Slot] = [parts[0]]
    for part in parts[1:]:
        content += [Slot.IMAGE, part]
    return Message("user", tuple(content))


def _check_order(messages: tuple[Message, ...], where: str) -> None:
    body = messages[1:] if messages[0].role == "system" else messages
    for place, message in enumerate(body):
        expected = "assistant" if place % 2 else "user"
        if message.role != expected:
            reason = f"{where} has the {message.role}'s turn where the {expected}'s must be; put them in turn."
            raise RecordError(reason, ORDER)
    if not body or len(body) % 2:
        raise RecordError(
            f"{where} does not end with a gpt turn; nothing could be learned from its last question.", ORDER
        )


def _images(value: Any, where: str) -> tuple[str, ...]:
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise RecordError(f"{where} has an 'image' that is neither a path nor a list of paths; write it as one.")
    return tuple(paths)

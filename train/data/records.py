"""Training records, read into messages.

A file is a JSON list or JSON lines of ``{"id", "image": path or list of paths, "conversations": [{"from", "value"}]}``,
as LLaVA has them, or of any other form that :func:`mobillama_v.conversation.read_record` takes. A record without
``image`` is text only. An error names the file and the record's id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama_v.conversation import MALFORMED, ConversationError, read_record
from mobillama_v.errors import DataError
from mobillama_v.json_stream import record_texts
from mobillama_v.prompt import Message
from mobillama_v.tables import BY_NAME, by_name

SLASHES = "backslashes in an image's path were read as slashes"


class RecordError(DataError):
    """A record cannot be learned from; ``kind`` says why, to be counted by."""

    def __init__(self, message: str, kind: str = MALFORMED) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Record:
    """One conversation; ``images`` are the paths of its image slots in order, ``notes`` say what was changed in it."""

    id: str
    images: tuple[str, ...]
    messages: tuple[Message, ...]
    source: str
    notes: tuple[str, ...] = ()

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
    """Read one record; ``place`` in the file names it where it has no id.

    Raises:
        RecordError: it has no canonical form (:func:`~mobillama_v.conversation.read_record`), or an image is no path.
    """
    if not isinstance(value, dict):
        raise RecordError(f"{source}, {place} is no mapping; each record is an object with an id.")
    name = str(value.get("id", place))
    where = f"{source}, record {name!r}"
    if by_name(value):
        raise RecordError(f"{where} {BY_NAME}.")
    try:
        read = read_record(value)
    except ConversationError as error:
        raise RecordError(f"{where}: {error}", error.kind) from error
    if not all(isinstance(path, str) and not path.startswith("data:") for path in read.images):
        raise RecordError(f"{where} has an 'image' that is no path; write the image to a file.")
    images = tuple(path.replace("\\", "/") for path in read.images)
    notes = read.notes if images == read.images else (*read.notes, SLASHES)
    return Record(name, images, read.messages, source, notes)

"""The records of a JSON file one after the other, as text: a file of a gigabyte costs the memory of a record.

A file is a JSON list, JSON lines, or JSON values one after the other (records on several lines each). It is UTF-8, or
UTF-16 as Windows writes it. Neither torch nor a worker process is needed to read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from mobillama_v.errors import DataError

_CHUNK = 1 << 20  # characters read at a time
_SPACE = " \t\r\n"
_SPACES = re.compile(f"[{_SPACE}]*")
_LONGEST_TOKEN = 16  # characters of the longest JSON token that a chunk's end can cut in two, strings aside

_scan = json.JSONDecoder().raw_decode


def unicode_of(path: Path) -> str:
    """Which form of Unicode a text file has, by its first bytes: ``utf-16``, ``utf-16-le`` or ``-be``, ``utf-8-sig``.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(2)
    if head in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    return "utf-8-sig" if 0 not in head else "utf-16-be" if head[0] == 0 else "utf-16-le"


def record_texts(path: Path, *, read: Callable[[int], None] | None = None) -> Iterator[tuple[str, str]]:
    """Where each record is in the file (``"line 7"``, ``"number 7"``) and its JSON text.

    Lines are given as they are, whether they are JSON or not. What is no JSON in a list, or in a record of several
    lines, ends the file, since nobody knows where the next record starts.

    Args:
        path: the file.
        read: called from time to time with the number of bytes that have been read.

    Raises:
        DataError: the file cannot be read, holds no record, or is a list that is not JSON.
    """
    number = 0
    try:
        with open(path, encoding=unicode_of(path)) as file:
            start = next((line for line in iter(lambda: file.readline(_CHUNK), "") if line.strip()), "")
            file.seek(0)
            listed = start.lstrip()[:1] == "["
            if listed or _goes_on(start):
                reader = _ListReader(file, path, read)
                texts = (("number", text) for text in (reader.items() if listed else reader.values()))
            else:
                texts = (("line", text) for text in _lines(file, read))
            for number, (unit, text) in enumerate(texts, 1):
                if unit == "number" or text.strip():
                    yield f"{unit} {number}", text
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); check its path, and that it is UTF-8.") from error
    if not number:
        raise DataError(f"{path} holds no record; check that it is the right file.")


def _goes_on(line: str) -> bool:
    """Whether a value begins on the line that does not end there."""
    try:
        _scan(line.lstrip())
    except (json.JSONDecodeError, RecursionError) as error:
        return isinstance(error, json.JSONDecodeError) and error.pos >= len(line.strip())
    return False


def _lines(file: TextIO, read: Callable[[int], None] | None) -> Iterator[str]:
    since = 0
    for line in file:
        since += len(line)
        if read is not None and since > _CHUNK:
            read(file.buffer.tell())
            since = 0
        yield line


class _ListReader:
    """Reads JSON values; ``text[start:]`` is the part of the file that is read and not used yet."""

    def __init__(self, file: TextIO, path: Path, read: Callable[[int], None] | None) -> None:
        self.file, self.path, self.read = file, path, read
        self.text, self.start, self.line, self.ended = "", 0, 1, False

    def items(self) -> Iterator[str]:
        """The texts of the items."""
        self.expect("[")
        if self.peek() != "]":
            yield self.value()
            while self.peek() == ",":
                self.expect(",")
                yield self.value()
        self.expect("]")
        if self.peek():
            self.fail("there is more after the end of the list")

    def values(self) -> Iterator[str]:
        """The texts of values that stand one after the other."""
        while self.peek():
            yield self.value()

    def peek(self) -> str:
        """The next character that is no space; nothing at the end of the file."""
        while True:
            self.start += len(_SPACES.match(self.text, self.start)[0])  # type: ignore[index]
            if self.start < len(self.text):
                return self.text[self.start]
            if not self.more(_CHUNK):
                return ""

    def expect(self, character: str) -> None:
        """Take ``character``."""
        found = self.peek()
        if found != character:
            self.fail(f"{character!r} is missing" + ("" if found else "; the file ends too early"))
        self.start += 1

    def value(self) -> str:
        """Take one value."""
        size = _CHUNK
        self.peek()
        while True:
            try:
                _, end = _scan(self.text, self.start)
            except RecursionError:
                self.fail("a record is nested too deeply")
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _LONGEST_TOKEN
                if not (cut and self.more(size)):
                    self.start = error.pos
                    self.fail(error.msg)
                size *= 2  # a record of many chunks is not scanned once for each
                continue
            closed = self.text[self.start] in '{["' or self.text[end : end + 1] in (*_SPACE, ",", "]")
            if not closed and self.more(size):  # a number may go on
                continue
            value, self.start = self.text[self.start : end], end
            return value

    def more(self, size: int) -> bool:
        """Read on; False at the end of the file."""
        chunk = "" if self.ended else self.file.read(size)
        if not chunk:
            self.ended = True
            return False
        self.line += self.text.count("\n", 0, self.start)
        self.text, self.start = self.text[self.start :] + chunk, 0
        if self.read is not None:
            self.read(self.file.buffer.tell())
        return True

    def fail(self, reason: str) -> None:
        """Refuse the file.

        Raises:
            DataError: always.
        """
        line = self.line + self.text.count("\n", 0, self.start)
        raise DataError(f"{self.path} is not valid JSON (line {line}: {reason}); fix it or export it again.")

"""Tables of any kind, row by row: CSV as spreadsheets write it, and JSON objects.

A CSV file may be separated by commas, semicolons or tabs, begin with Excel's line ``sep=;``, and be UTF-8, UTF-16 or
Windows' code page 1252. Names of columns count without case and without blanks around them.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, TextIO

from mobillama_v.errors import DataError
from mobillama_v.images.kinds import SUFFIXES
from mobillama_v.json_stream import record_texts, unicode_of

Pick = Literal["first", "most"]
BY_NAME = "is an object that holds records by their names; write them as a list"
_DELIMITERS = ",;\t"
_LONGEST = 1 << 24  # characters of a field
_CHUNK = 1 << 20
_LONGEST_PATH = 300  # characters; a longer text is none


class Row(NamedTuple):
    """A row: where it is (``line 7``), its values by :func:`column_name`, and what is wrong with it, or nothing."""

    place: str
    values: dict[str, Any]
    problem: str = ""


def column_name(name: object) -> str:
    """A column's name as rows have it: small letters, no blanks around."""
    return str(name).strip().casefold()


def stray_picture(row: Mapping[Any, Any], known: Collection[str]) -> tuple[str, str] | None:
    """Where a row without a picture names one after all.

    Args:
        row: its values by column.
        known: columns that are read as something else.

    Returns:
        The column and the file that it names; ``None`` where there is none.
    """
    for name, value in row.items():
        text = value.strip() if isinstance(value, str) and len(value) <= _LONGEST_PATH else ""
        if name not in known and "\n" not in text and PurePath(text).suffix.lower() in SUFFIXES:
            return str(name), text
    return None


def is_json(path: Path) -> bool:
    """Whether a file is JSON, by its name or, where that says nothing, its first character.

    Raises:
        DataError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl", ".ndjson", ".csv", ".tsv"):
        return "json" in suffix
    with _open(path) as file:
        return file.read(_CHUNK).lstrip()[:1] in ("[", "{")


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header, or the objects of a JSON list, JSON lines, or JSON values; blank rows not.

    A row that cannot be read has a ``problem``, and what follows it is read.

    Raises:
        DataError: the file cannot be read, holds no row, has a column twice, or a quote in it is never closed.
    """
    if not is_json(path):
        yield from _csv_rows(path)
        return
    for place, text in record_texts(path):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Row(place, {}, f"is not valid JSON ({error}); fix it")
            continue
        if by_name(value):
            yield Row(place, {}, BY_NAME)
        elif isinstance(value, dict):
            yield Row(place, {column_name(name): each for name, each in value.items()})
        else:
            yield Row(place, {}, "is no object with columns; write it as one")


def by_name(value: Any) -> bool:
    """Whether a JSON value is an object that holds records by their names, and no record itself."""
    return isinstance(value, dict) and bool(value) and all(isinstance(each, dict) for each in value.values())


def _open(path: Path) -> TextIO:
    """A text file, opened by what its bytes say of their encoding.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        encoding = unicode_of(path)
        with open(path, "rb") as head:
            if head.read(4) == b"PK\x03\x04":
                raise DataError(f"{path} is a workbook or an archive, no text; save its table as CSV.")
        if encoding == "utf-8-sig":
            try:
                with open(path, encoding=encoding) as file:
                    while file.read(_CHUNK):
                        pass
            except UnicodeDecodeError:
                encoding = "cp1252"
        return open(path, encoding=encoding, newline="")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check its path.") from error


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST)
    try:
        with _open(path) as file:
            head = file.readline(_CHUNK)
            skipped, delimiter = 1, head.strip()[4:5] or "\t"
            if not head.lower().startswith("sep="):
                file.seek(0)
                head = next((line for line in iter(lambda: file.readline(_CHUNK), "") if line.strip()), "")
                delimiter = max(_DELIMITERS, key="".join(head.split('"')[::2]).count)
                file.seek(0)
                skipped = 0
            yield from _rows_of(file, delimiter, skipped, path)
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); save it as UTF-8.") from error


def _rows_of(file: TextIO, delimiter: str, skipped: int, path: Path) -> Iterator[Row]:
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    names: list[str] = []
    count = 0
    while True:
        place = f"line {skipped + reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if not names or "unexpected end" in str(error):
                raise DataError(f"{path}, {place} has a quote that is never closed; close it.") from error
            count += 1
            yield Row(place, {}, f"cannot be split into columns ({error}); write a quote inside quotes twice")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            names = [column_name(cell) for cell in cells]
            while not names[-1]:  # text below is an answer that was split; an unnamed first column is an index
                names.pop()
            twice = [name for name, times in Counter(filter(None, names)).items() if times > 1]
            if twice:
                raise DataError(f"{path} has the column {', '.join(twice)} twice; rename one of them.")
            continue
        count += 1
        if any(cell.strip() for cell in cells[len(names) :]):
            yield Row(place, {}, "has more columns than the header; put texts that hold the separator in quotes")
        else:
            yield Row(place, {name: cell for name, cell in zip(names, cells, strict=False) if name})
    if not count:
        raise DataError(f"{path} holds no row under a header; check that it is the right file.")


def text_of(value: Any, pick: Pick | None = None) -> str:
    """A value as text: a text without blanks around it, a number or ``true`` as JSON writes it.

    Args:
        value: of a row.
        pick: of a list take the ``first``, or the one that comes ``most`` often (the first of equals).

    Raises:
        ValueError: it is no text; the message says what it is, for "... is {message}".
    """
    if isinstance(value, list | tuple) and value and pick is not None:
        texts = [text_of(each) for each in value]
        return texts[0] if pick == "first" else Counter(texts).most_common(1)[0][0]
    if isinstance(value, list | tuple):
        raise ValueError("a list; choose one of it with --pick first or --pick most" if value else "an empty list")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError("empty")
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, bool | int | float):
        raise ValueError("an object" if isinstance(value, dict) else f"a {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("NaN or infinite")
    return json.dumps(value)

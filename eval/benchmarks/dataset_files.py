"""Reading what the owners of benchmarks publish, with one clear sentence for what is wrong with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mobillama_v.errors import DataError

# Where a file may lie below the data folder: at its top, or where archives and LLaVA's evaluation folders put it.
_BELOW = ("", "data", "questions", "images")
_NAMED = 3


def benchmark_folder(data: Path, name: str) -> Path:
    """The folder of one benchmark: ``data/<name>`` (in any case) where there is one, otherwise ``data`` itself.

    Raises:
        DataError: ``data`` does not exist or cannot be listed.
    """
    if not data.exists():
        raise DataError(f"{str(data)!r} does not exist; give --data the folder of the benchmark's files.")
    try:
        below = sorted(data.iterdir()) if data.is_dir() else []
    except OSError as error:
        raise DataError(f"{str(data)!r} cannot be listed ({error.strerror}); check its permissions.") from None
    return next((each for each in below if each.name.lower() == name and each.is_dir()), data)


def find(data: Path, *names: str) -> Path | None:
    """The first of several files or folders that exists, at the top of ``data`` or one level down."""
    for name in names:
        for below in _BELOW:
            path = data / below / name
            if path.exists():
                return path
    return None


def need(data: Path, *names: str, title: str, command: str) -> Path:
    """Like :func:`find`.

    Raises:
        DataError: none exists, or ``data`` is no folder.
    """
    if not data.is_dir():
        raise DataError(f"{str(data)!r} is not a folder; give --data the folder of {title}'s files.")
    path = find(data, *names)
    if path is None:
        raise DataError(
            f"{str(data)!r} is not a folder of {title}: {' or '.join(names)} is missing; "
            f"`mobillama-v eval prepare {command} --data {data}` says what belongs there."
        )
    return path


def read_json(path: Path) -> Any:
    """A JSON file, whole.

    Raises:
        DataError: it cannot be read, or is cut off, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror}); check the file.") from None
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not valid JSON, or cut off ({error}); download it again.") from None


def read_json_or_chunks(path: Path) -> Any:
    """A mapping in one JSON file, or cut into ``name/name_*.json``, as GQA publishes what is large.

    Raises:
        DataError: a file cannot be read or is no mapping.
    """
    if path.is_file():
        return read_mapping(path)
    merged: dict[str, Any] = {}
    for chunk in sorted(path.glob(f"{path.name}_*.json")):
        merged.update(read_mapping(chunk))
    if not merged:
        raise DataError(f"{str(path)!r} holds no {path.name}_*.json; download it again.")
    return merged


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{str(path)!r} holds a JSON {kind(found)} and must hold an object; download it again.")
    return found


def read_text(path: Path) -> str:
    """A UTF-8 text file.

    Raises:
        DataError: it cannot be read or is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror}); check the file.") from None
    except UnicodeDecodeError:
        raise DataError(f"{str(path)!r} is not UTF-8 text; check that it is the right file.") from None


def json_lines(path: Path) -> list[tuple[int, Any]]:
    """The values of a file of JSON lines with the numbers of their lines; empty lines are skipped.

    Raises:
        DataError: a line is not JSON.
    """
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except ValueError as error:
                raise DataError(
                    f"{str(path)!r}, line {number} is not valid JSON ({error}); mend or remove it."
                ) from None
    return found


def field(record: Any, name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """One field of a published record.

    Raises:
        DataError: the record is no mapping, or the field is missing or of another type.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where} is a JSON {kind(record)} and must be an object; download the file again.")
    if name not in record:
        raise DataError(f"{where} has no {name!r}; is it the file that its owners published?")
    value = record[name]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise DataError(f"{where} has a {name!r} that is a JSON {kind(value)}; is it the file its owners published?")
    return value


def texts(record: Any, name: str, where: str) -> list[str]:
    """A field that is a list of strings.

    Raises:
        DataError: as :func:`field`.
    """
    values = field(record, name, list, where)
    if not all(isinstance(value, str) for value in values):
        raise DataError(f"{where} has a {name!r} with something that is no text in it; download the file again.")
    return values


def check_unique(ids: Iterable[str], source: Path) -> None:
    """Refuse a set in which two questions have one id, since an answer could not be told to be about one of them.

    Raises:
        DataError: which ids.
    """
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{str(source)!r} has questions twice ({some(twice)}); give every question its own id.")


def kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def some(names: Sequence[str] | Iterable[str]) -> str:
    """The first few of some names, for a message."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED:,} more"

"""The JSON of a request, read in small steps.

Python runs one thread at a time, and lets the others wait while it reads a text: a tenth of a second for 40 MB. So long
strings, as those of pictures, are cut out and read a piece at a time, and only what is left is read at once.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from typing import Any, NoReturn

import numpy as np

from mobillama_v.demo.protocol import RequestError

MAX_VALUES = 200_000
"""Values and escaped characters in the JSON of a request: Python keeps about a hundred bytes for each value."""
MAX_ESCAPES = 1_200_000
"""Backslashes: base64 in lines has two for every 76 characters."""
_PIECE = 1 << 18
_MOST_OUTSIDE = 1 << 22  # bytes of numbers and blanks between two strings
_CUT = re.compile(
    rb"[^\\]{12}(?![\x80-\xbf])", re.DOTALL
)  # not in a character, nor in one that is escaped in two halves


def read_json(data: bytearray) -> Any:
    """The JSON in ``data``.

    Raises:
        RequestError: it is not valid JSON in UTF-8, or has too many values.
    """
    token = secrets.token_hex(16)  # nobody can know it, and write it
    try:
        runs, has_codes = _survey(data)
        rest, end = list[bytes | bytearray](), 0
        for number, (start, stop) in enumerate(runs):
            rest += [data[end:start], f"<{token}{number}>".encode()]
            end = stop
        value = _parsed(b"".join((*rest, data[end:])).decode("utf-8-sig"), has_codes)
        return _filled(value, data, runs, re.compile(f"<{token}([0-9]+)>")) if runs else value
    except UnicodeEncodeError:
        raise RequestError("The request holds half a character (\\ud800 to \\udfff alone); remove it.") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The request is not valid JSON ({error}).") from None


def _survey(data: bytearray) -> tuple[list[tuple[int, int]], bool]:
    """The long runs of bytes without a quote within strings, and whether there are characters given by their codes.

    numpy lets other threads run.

    Raises:
        RequestError: there are too many values.
        ValueError: a string has no end, or what stands outside of strings is too long.
    """
    array, values, codes, escapes, seen = np.frombuffer(data, np.uint8), 0, 0, 0, 0
    runs, last, inside = list[tuple[int, int]](), -1, False
    for start in range(0, len(array), _PIECE):
        piece, after = array[start : start + _PIECE], array[start + 1 : start + _PIECE + 1]
        values += sum(int(np.count_nonzero(piece == each)) for each in b",[{")
        escaped = piece == ord("\\")
        escapes += int(np.count_nonzero(escaped))
        codes += int(np.count_nonzero(escaped[: len(after)] & (after == ord("u"))))
        quotes = np.flatnonzero(piece == ord('"')) + start
        seen += len(quotes)
        if max(values, codes, seen // 10) > MAX_VALUES or escapes > MAX_ESCAPES:
            message = f"The request has more than {MAX_VALUES:,} values or escaped characters."
            raise RequestError(message, status=413, code="request_too_large")
        for quote in quotes.tolist():
            if quote - last > _PIECE and inside:
                runs.append((last + 1, quote - _backslashes(data, quote)))
            elif quote - last > _MOST_OUTSIDE:
                break
            if not (inside and _backslashes(data, quote) % 2):
                inside = not inside
            last = quote
        time.sleep(0)  # let others run
    if inside:
        raise ValueError(f"the string at byte {last} has no end")
    if len(array) - last > _MOST_OUTSIDE:
        raise ValueError(f"there is no string in {_MOST_OUTSIDE:,} bytes")
    return runs, codes > 0


def _backslashes(data: bytearray, end: int) -> int:
    """How many stand before ``end``."""
    start = end
    while start > 0 and data[start - 1] == ord("\\"):
        start -= 1
    return end - start


def _parsed(text: str, has_codes: bool) -> Any:
    value = json.loads(text, parse_constant=_refuse_constant)
    if has_codes:  # no other text can hold half of a character
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _filled(value: Any, data: bytearray, runs: list[tuple[int, int]], mark: re.Pattern[str]) -> Any:
    """``value`` with the runs where their marks are."""
    if isinstance(value, list):
        return [_filled(each, data, runs, mark) for each in value]
    if isinstance(value, dict):
        return {_filled(key, data, runs, mark): _filled(each, data, runs, mark) for key, each in value.items()}
    if not isinstance(value, str) or len(value) < 32:
        return value
    parts = mark.split(value)
    for i in range(1, len(parts), 2):
        parts[i] = _string(data, *runs[int(parts[i])])
    return "".join(parts)


def _string(data: bytearray, start: int, stop: int) -> str:
    """The text of a string's bytes from ``start`` to ``stop``."""
    texts = []
    while start < stop:
        cut = _CUT.search(data, start + _PIECE, stop)
        end = cut.end() if cut else stop
        piece = bytes(data[start:end])
        texts.append(_parsed(f'"{piece.decode()}"', b"\\u" in piece))
        start = end
        time.sleep(0)
    return "".join(texts)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")

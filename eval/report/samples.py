"""Which questions a report shows, and their pictures: small, inside the page, and bounded in sum."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest

from mobillama_v.errors import ImageError
from mobillama_v.eval.results import Judged

_SIDE = 400  # pixels of the longer side
_QUALITY = 80


def pick(rows: Sequence[Judged], count: int, category: str) -> list[Judged]:
    """Some of the rows, the same ones each time: every category in turn, and pictures that were not shown first."""
    shelves: dict[str, list[Judged]] = {}
    for row in sorted(rows, key=lambda row: hashlib.sha256(row.id.encode("utf-8", "replace")).digest()):
        shelves.setdefault(row.group.get(category, ""), []).append(row)
    turns = [row for turn in zip_longest(*(shelves[name] for name in sorted(shelves))) for row in turn if row]
    fresh: list[Judged] = []
    again: list[Judged] = []
    seen: set[str] = set()
    for row in turns:
        (again if row.unit in seen else fresh).append(row)
        seen.add(row.unit)
    return (fresh + again)[:count]


@dataclass
class Pictures:
    """Pictures as data URLs, as long as ``room`` [bytes] is left for them."""

    room: int

    def of(self, row: Judged) -> Iterator[str]:
        """The data URLs of a question's pictures, or in the place of one the reason why it is not there."""
        for path in row.images:
            try:
                url = _data_url(path)
            except ImageError:
                yield "The picture is not where it was."
                continue
            if len(url) > self.room:
                yield "Left out: the page would be too large."
                continue
            self.room -= len(url)
            yield url


def _data_url(path: str) -> str:
    from mobillama_v.images import load_image

    image = load_image(path, target=_SIDE)
    image.thumbnail((_SIDE, _SIDE))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

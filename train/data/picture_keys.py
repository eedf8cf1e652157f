"""What a picture is called in a feature store: a digest of its content.

Digests are kept with size and times of the file, so that only what changed is read again. A file of the same name in
another folder, or with other content, has another digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mobillama_v.errors import DataError, ImageError
from mobillama_v.progress import Progress
from mobillama_v.train.data.parallel import BATCH, parallel_map

KEY_BYTES = 16


class Known(NamedTuple):
    """A digest, and the size, modification and change time [ns] of the file then; None where there is no file."""

    stamp: tuple[int, int, int] | None
    key: bytes


class PictureKeys:
    """Keys of pictures by path, kept in a file of JSON lines that only grows."""

    def __init__(self, path: Path) -> None:
        """Read the keys that are known.

        Raises:
            DataError: ``path`` is there and cannot be read.
        """
        self._path = path
        self._known: dict[str, Known] = {}
        try:
            lines = path.read_bytes().splitlines() if path.exists() else []
        except OSError as error:
            raise DataError(f"the features' {path} cannot be read ({error.strerror}); check data.features.") from error
        for line in lines:
            with suppress(ValueError):  # what a kill cut off
                name, stamp, key = json.loads(line)
                self._known[name] = Known(stamp and tuple(stamp), bytes.fromhex(key))

    def of(self, paths: Sequence[Path], *, workers: int | None = None) -> list[bytes]:
        """Keys of pictures; reads the files that are new or changed, by ``workers`` processes (None: all cores).

        Raises:
            ImageError: a picture that is not there.
            DataError: the keys cannot be written.
        """
        names = [str(path.absolute()) for path in paths]
        items = [(name, self._known.get(name)) for name in names]
        found: list[Known] = []
        with Progress("images") as bar:
            for each in parallel_map(_identify, items, workers=workers):
                found.append(each)
                if len(found) % BATCH == 0:
                    bar("picture keys", len(found), len(items))
        self._keep((name, new) for (name, old), new in zip(items, found, strict=True) if new != old)
        return [each.key for each in found]

    def name(self, rows: Mapping[Path, bytes]) -> list[bytes]:
        """Keys for rows that no picture file has, by path and content: :meth:`of` finds them by their paths.

        Raises:
            DataError: the keys cannot be written.
        """
        made = {str(path.absolute()): Known(None, digest(content)) for path, content in rows.items()}
        self._keep((name, each) for name, each in made.items() if self._known.get(name) != each)
        return [each.key for each in made.values()]

    def is_named(self, path: Path) -> bool:
        """Whether :meth:`name` was given this path."""
        known = self._known.get(str(path.absolute()))
        return known is not None and known.stamp is None

    def _keep(self, fresh: Iterable[tuple[str, Known]]) -> None:
        lines = []
        for name, each in fresh:
            self._known[name] = each
            lines.append(json.dumps([name, each.stamp, each.key.hex()]) + "\n")
        if not lines:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a+b") as file:
                file.seek(0, 2)
                if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                    file.write(b"\n")
                file.write("".join(lines).encode())
        except OSError as error:
            raise unwritable(self._path.parent, error) from error


def digest(content: bytes) -> bytes:
    """The key of a picture file with this content."""
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def content_of(path: str | Path) -> bytes:
    """The bytes of a picture file.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"the image {path} cannot be read ({error.strerror}); restore it.") from None


def unwritable(folder: Path, error: OSError) -> DataError:
    """The error of a store that cannot grow."""
    return DataError(
        f"features cannot be written to {folder} ({error.strerror}); what is written is kept: make room, or give "
        "data.features a folder on another disk, and run the same command again."
    )


def _identify(item: tuple[str, Known | None]) -> Known:
    name, known = item
    if known is not None and known.stamp is None:
        return known
    path = Path(name)
    with suppress(OSError):
        found = path.stat()
        # The change time too: unlike the other two, no program that copies a file can set it.
        stamp = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        return known if known is not None and known.stamp == stamp else Known(stamp, digest(content_of(path)))
    return Known(None, digest(content_of(path)))  # which says why it cannot be read

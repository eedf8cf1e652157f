"""The folder of one benchmark in a run: what was asked of which model, and every answer so far.

``RUN/gqa/`` holds ``run.json`` (what makes answers comparable), while it runs ``shards/<rank>.jsonl`` (answers as they
come, one process a file), at its end ``predictions.jsonl`` (all answers, in the benchmark's order) and ``score.json``.
Where the words in pictures are read, ``ocr/<rank>.jsonl`` holds them, one picture a line. A line is one answer, so a
kill costs at most the line that it cut in two.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mobillama_v.errors import DataError

if TYPE_CHECKING:
    from io import FileIO

RUN, PREDICTIONS, SCORE, SHARDS, LOCK = "run.json", "predictions.jsonl", "score.json", "shards", ".lock"
TOKENS = "ocr"
# What a run that was killed as it began may leave.
_BEGUN = (LOCK, SHARDS, f".{RUN}.partial")
# What must be equal for answers to belong to one run, in the words of a message.
_SAME = {
    "benchmark": "benchmark",
    "settings": "benchmark settings",
    "questions_sha256": "questions",
    "weights_sha256": "model weights",
    "precision": "precision",
    "max_new_tokens": "max_new_tokens",
}


class Store:
    """Answers of one benchmark; see the module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def predictions(self) -> Path:
        """The file of all answers; it is there when every question is answered."""
        return self.folder / PREDICTIONS

    @contextlib.contextmanager
    def claimed(self, run: Mapping[str, Any]) -> Iterator[None]:
        """Begin a run here, or go on with one, and keep others out until the end.

        An answer that a kill cut in two is removed. One process of a run does this, before any adds answers.

        Raises:
            DataError: the folder holds answers of another run, files that are no run, or cannot be written, or another
                run is writing there.
        """
        self._check(run)
        with _writing(self.folder):
            (self.folder / SHARDS).mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOCK, "ab") as file:
            _lock(file, self.folder)
            if not (self.folder / RUN).is_file():
                write_json(self.folder / RUN, dict(run))
            for shard in [*self._shards(), *self._token_shards()]:
                _repair(shard)
            yield

    def _check(self, run: Mapping[str, Any]) -> None:
        path = self.folder / RUN
        if path.is_file():
            there = read_json(path)
            other = [word for key, word in _SAME.items() if there.get(key) != run[key]]
            if other:
                raise DataError(
                    f"{str(self.folder)!r} holds answers of another run ({_differences(there, run)}); choose another "
                    "--output, or remove that folder."
                )
        elif self.folder.is_dir() and any(each.name not in _BEGUN for each in self.folder.iterdir()):
            raise DataError(f"{str(self.folder)!r} is not empty and holds no {RUN}; choose another --output.")

    def answered(self) -> dict[str, dict[str, Any]]:
        """Every answer so far by question id.

        Raises:
            DataError: a line is not an answer.
        """
        found: dict[str, dict[str, Any]] = {}
        for path in [self.predictions, *self._shards()]:
            if path.is_file():
                for line in _lines(path, "an answer", question_id=str, text=str):
                    found.setdefault(line["question_id"], line)
        return found

    @contextlib.contextmanager
    def shard(self, rank: int) -> Iterator[Shard]:
        """The file that a process adds its answers to.

        Raises:
            DataError: it cannot be written.
        """
        with _appended(self.folder / SHARDS / f"{rank}.jsonl") as shard:
            yield shard

    def tokens(self) -> dict[str, list[str]]:
        """The words read so far, by SHA-256 of the picture.

        Raises:
            DataError: a line is not what was read.
        """
        lines = (line for path in self._token_shards() for line in _lines(path, "a picture", sha256=str, tokens=list))
        return {line["sha256"]: line["tokens"] for line in lines}

    @contextlib.contextmanager
    def token_shard(self, rank: int) -> Iterator[Shard]:
        """The file that a process adds the words of pictures to; errors as :meth:`shard`."""
        with _appended(self.folder / TOKENS / f"{rank}.jsonl") as shard:
            yield shard

    def merge(self, order: Iterable[str]) -> None:
        """Write all answers to one file in the order of the questions, and remove the shards.

        Raises:
            DataError: a question has no answer.
        """
        found = self.answered()
        ids = list(order)
        missing = [each for each in ids if each not in found]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(ids)} questions have no answer in {str(self.folder)!r} (first: "
                f"{missing[0]!r}); run the same command again."
            )
        write_text(self.predictions, "".join(_line(found[each]) for each in ids))
        shutil.rmtree(self.folder / SHARDS)

    def _shards(self) -> list[Path]:
        return sorted((self.folder / SHARDS).glob("*.jsonl"))

    def _token_shards(self) -> list[Path]:
        return sorted((self.folder / TOKENS).glob("*.jsonl"))


class Shard:
    """A file of lines that only grows; what was added is with the system before :meth:`add` returns."""

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def add(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Append mappings, one a line.

        Raises:
            DataError: the disk is full; :meth:`Store.claimed` removes the line of which a part was written.
        """
        content = "".join(map(_line, values)).encode()
        with _writing(Path(str(self._file.name))):
            if self._file.write(content) != len(content):  # a disk that gets full takes a part first
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _appended(path: Path) -> Iterator[Shard]:
    with contextlib.ExitStack() as stack:
        with _writing(path):
            path.parent.mkdir(exist_ok=True)
            file = stack.enter_context(open(path, "ab", buffering=0))
        yield Shard(file)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise what the system refuses as an error that can be read."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{str(path)!r} cannot be written ({error.strerror}); make room or choose another --output. What is "
            "answered is kept: the same command goes on."
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a JSON file.

    Raises:
        DataError: it is missing, not JSON or not a mapping.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{str(path)!r} is missing: give the folder that `mobillama-v eval run` wrote.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read as JSON ({error}); remove it and run again.") from None
    if not isinstance(found, dict):
        raise DataError(f"{str(path)!r} is not a JSON mapping; remove it and run again.")
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all: elsewhere first, then renamed after its bytes are on the disk.

    Raises:
        DataError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with _writing(path), open(partial, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except DataError:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def write_output(path: Path, text: str) -> None:
    """:func:`write_text` for a file that the user named; its folder is made. Errors as of that."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _lines(path: Path, what: str, **kinds: type) -> Iterator[dict[str, Any]]:
    """The lines of a file, each of which has fields of these types."""
    # Split at newlines only: JSON text may hold what str.splitlines takes for the end of a line.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line:
            continue
        try:
            value = json.loads(line)
            if all(isinstance(value[name], kind) for name, kind in kinds.items()):
                yield value
                continue
        except (ValueError, KeyError, TypeError):
            pass
        raise DataError(f"{str(path)!r}, line {number}, is not {what}; remove this line and run again.")


def _repair(path: Path) -> None:
    """Remove what follows the last newline: the beginning of an answer whose process was killed."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _lock(file: BinaryIO, folder: Path) -> None:
    """Refuse to write where another process writes; the system frees the lock of a process that ends or is killed."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two processes apart
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise DataError(
            f"another process is writing in {str(folder)!r}; wait for it or choose another --output."
        ) from None


def _differences(there: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """What differs, with both values where they are short enough to be read."""
    parts = []
    for key, word in _SAME.items():
        old, new = there.get(key), run[key]
        if old == new:
            continue
        if key == "weights_sha256":
            parts.append(f"model {there.get('model')!r}, not {run['model']!r}, or its weights have changed")
        elif key == "settings" and isinstance(old, dict):
            changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
            parts += [f"{k} {old.get(k)!r}, not {new.get(k)!r}" for k in changed]
        elif key == "questions_sha256":
            parts.append(f"{word} that have changed since")
        else:
            parts.append(f"{word} {old!r}, not {new!r}")
    return "; ".join(parts)

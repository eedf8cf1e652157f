"""All records of a data mix: read, checked and turned into tokens by every core.

Results come in the order of the files, whatever the number of processes. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mobillama_v.errors import ImageError
from mobillama_v.images import load_image
from mobillama_v.json_stream import record_texts
from mobillama_v.train.data.encoding import Encoding, Tokens, encode_record
from mobillama_v.train.data.parallel import BATCH, parallel_map
from mobillama_v.train.data.records import RecordError, parse_text

DUPLICATE, MISSING, UNREADABLE = "exact duplicate", "missing image", "unreadable image"
KEPT = "an exact duplicate of an earlier record was kept"
_CHECK_SIZE = 64  # pixels of a side: JPEGs are read to their end, and decoded small


@dataclass(frozen=True)
class Problem:
    """Why a record cannot be learned from: where it is, its kind, and the sentence that says what to do."""

    source: str
    place: str
    record: str
    kind: str
    reason: str


class Outcome(NamedTuple):
    """A record that was read: a problem, or its images, and its tokens where an encoding was given."""

    source: str
    place: str
    record: str
    problem: Problem | None
    images: tuple[str, ...] = ()
    digest: bytes = b""
    tokens: Tokens | None = None
    notes: tuple[str, ...] = ()
    """What the reader changed in it."""


def preprocess(
    files: Sequence[Path],
    encoding: Encoding | None = None,
    *,
    workers: int | None = None,
    keep_duplicates: bool = False,
    read: Callable[[int], None] | None = None,
) -> Iterator[Outcome]:
    """Read the records of all files.

    Args:
        files: JSON lists or JSON lines.
        encoding: also turn records into tokens, and check whether they fit.
        workers: processes; None means all cores.
        keep_duplicates: do not count a record as a problem because the same images and conversation came before.
        read: called with the bytes of all files that have been read.

    Raises:
        DataError: a file cannot be read, or is a list that is not JSON.
        CheckpointError: no tokenizer where the encoding says.
    """
    if encoding is not None:
        encoding.open()  # a mistake is raised here, and not by a worker
    work = functools.partial(preprocess_record, encoding=encoding)
    seen: dict[bytes, str] = {}
    for outcome in parallel_map(work, _texts(files, read), workers=workers):
        where = f"{outcome.source}, {outcome.place}"
        if outcome.problem is not None or (first := seen.setdefault(outcome.digest, where)) is where:
            yield outcome
        elif keep_duplicates:
            yield outcome._replace(notes=(*outcome.notes, KEPT))
        else:
            yield _duplicate(outcome, first)


def _texts(files: Sequence[Path], read: Callable[[int], None] | None) -> Iterator[tuple[str, str, str]]:
    before = 0
    for path in files:
        callback = None if read is None else lambda size, before=before: read(before + size)
        for place, text in record_texts(path, read=callback):
            yield str(path), place, text
        if read is not None:
            before += path.stat().st_size
            read(before)


def preprocess_record(item: tuple[str, str, str], *, encoding: Encoding | None) -> Outcome:
    """Read one record, given its file, its place there and its text."""
    source, place, text = item
    try:
        record = parse_text(text, source=source, place=place)
        tokens = None if encoding is None else encode_record(record, encoding)
    except RecordError as error:
        name = record_id(text, place)
        return Outcome(source, place, name, Problem(source, place, name, error.kind, str(error)))
    turns = [
        (message.role, message.learned, [part if isinstance(part, str) else None for part in message.content])
        for message in record.messages
    ]
    digest = hashlib.blake2b(json.dumps([record.images, turns]).encode(), digest_size=16).digest()
    return Outcome(source, place, record.id, None, record.images, digest, tokens, record.notes)


def record_id(text: str, place: str) -> str:
    """The id of a record that may be none, or its ``place`` where it has no id."""
    try:
        value = json.loads(text)
        return str(value.get("id", place)) if isinstance(value, dict) else place
    except (ValueError, RecursionError):
        return place


def _duplicate(outcome: Outcome, first: str) -> Outcome:
    reason = (
        f"{outcome.source}, record {outcome.record!r} ({outcome.place}) has the images and the conversation of "
        f"{first}; remove one of them."
    )
    return Outcome(*outcome[:3], Problem(*outcome[:3], DUPLICATE, reason))


def partition(
    outcomes: Iterable[Outcome], images: Callable[[list[str]], dict[str, tuple[str, str]]]
) -> tuple[list[Outcome], list[Problem], list[str]]:
    """The records that can be learned from, the problems of the others in the order of the files, and all images.

    Args:
        outcomes: of :func:`preprocess`.
        images: is given the path of every image once, and gives those that cannot be used, as :func:`check_images`.
    """
    read = list(outcomes)
    paths = list(dict.fromkeys(path for outcome in read if outcome.problem is None for path in outcome.images))
    bad = images(paths)
    good, problems = [], []
    for outcome in read:
        problem = outcome.problem or _image_problem(outcome, bad)
        if problem is None:
            good.append(outcome)
        else:
            problems.append(problem)
    return good, problems, paths


def count_notes(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """What was changed in records while they were read, and in how many, most first."""
    return dict(Counter(note for outcome in outcomes for note in outcome.notes).most_common())


def check_images(
    paths: Sequence[str],
    root: Path,
    *,
    decode: bool,
    workers: int | None = None,
    done: Callable[[int], None] | None = None,
) -> dict[str, tuple[str, str]]:
    """Images that are not there or, with ``decode``, cannot be read: path to kind and reason.

    Args:
        paths: of images, each once, as records give them.
        root: what they are relative to.
        decode: read and decode them, as training will.
        workers: processes; None means all cores.
        done: called with the number of images that have been checked.
    """
    bad: dict[str, tuple[str, str]] = {}
    check = functools.partial(_check_image, root=root, decode=decode)
    for number, (path, found) in enumerate(zip(paths, parallel_map(check, paths, workers=workers), strict=True), 1):
        if found is not None:
            bad[path] = found
        if done is not None and number % BATCH == 0:
            done(number)
    return bad


def _check_image(path: str, *, root: Path, decode: bool) -> tuple[str, str] | None:
    try:
        if not (root / path).is_file():
            return MISSING, f"the image {root / path} is missing"
        if decode:
            load_image(root / path, target=_CHECK_SIZE)
    except (ImageError, OSError, ValueError) as error:  # the last: a path that cannot be one
        return UNREADABLE, str(error)
    return None


def _image_problem(outcome: Outcome, bad: dict[str, tuple[str, str]]) -> Problem | None:
    """The problem of a record that uses one of the ``bad`` images."""
    path = next((path for path in outcome.images if path in bad), None)
    if path is None:
        return None
    kind, reason = bad[path]
    text = f"{outcome.source}, record {outcome.record!r}: {reason.rstrip('.')}; fix the path or remove the record."
    return Problem(*outcome[:3], kind, text)

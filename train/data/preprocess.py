"""All records of a mix, read, judged and turned into tokens by every core; nothing here imports torch.

Results come in the order of the files, whatever the number of processes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mobillama_v.backends.select import processors
from mobillama_v.config import ModelConfig
from mobillama_v.errors import DataError, ImageError, RecipeError
from mobillama_v.images import load_image
from mobillama_v.prompt import IGNORE_INDEX, Encoded, Tokenizer, get_template
from mobillama_v.tokenization import TextTokenizer
from mobillama_v.train.data.json_stream import record_texts
from mobillama_v.train.data.records import Record, RecordError, parse_text

TOO_LONG, DUPLICATE = "no answer within the length", "exact duplicate"
MISSING, UNREADABLE = "missing image", "unreadable image"
SUPERVISED, IMAGE = 1, 2  # bits of a token's flags

T = TypeVar("T")
R = TypeVar("R")
_BATCH = 256  # records, or images, that a process gets at a time
_WORTH = 4 * _BATCH  # fewer than these are done before other processes have started
_GLANCE = 64  # pixels of a side: JPEGs are read to their end, and decoded small
_REMEMBERED = 1 << 16  # segments whose ids are kept: system sentences, common questions and answers


@dataclass(frozen=True)
class Problem:
    """Why a record cannot be learnt from: where it is, its kind, and the sentence that says what to do."""

    source: str
    place: str
    record: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Encoding:
    """How records become tokens; every process opens the ``tokenizer.json`` itself."""

    tokenizer: Path
    bos_id: int
    eos_id: int
    pad_id: int
    template: str
    tokens_per_image: int
    max_length: int

    @classmethod
    def of(
        cls,
        folder: Path,
        spec: ModelConfig,
        *,
        template: str | None,
        max_length: int | None,
        key: str,
    ) -> Encoding:
        """That of the model in ``folder``, which need not be loaded.

        Args:
            folder: holds the ``tokenizer.json``.
            spec: of the model.
            template: None means the model's.
            max_length: None means the model's context.
            key: what a user calls ``max_length``.

        Raises:
            RecipeError: a length that is more than the context.
            ConfigError: no such template, or a spec whose images make no whole number of tokens.
        """
        get_template(template or spec.template)
        context = spec.decoder.max_position_embeddings
        if max_length is not None and max_length > context:
            raise RecipeError(f"{key} is {max_length} and the model's context {context}; lower {key}.")
        return cls(
            tokenizer=folder / "tokenizer.json",
            bos_id=spec.decoder.bos_token_id,
            eos_id=spec.decoder.eos_token_id,
            pad_id=spec.decoder.pad_token_id,
            template=template or spec.template,
            tokens_per_image=spec.tokens_per_image(),
            max_length=max_length or context,
        )

    def open(self) -> TextTokenizer:
        """The tokenizer.

        Raises:
            CheckpointError: it is missing or cannot be read.
        """
        return TextTokenizer.from_file(self.tokenizer, bos_id=self.bos_id, eos_id=self.eos_id, pad_id=self.pad_id)


class Tokens(NamedTuple):
    """A record as tokens: ``ids`` [T] int32 and ``flags`` [T] uint8 as bytes."""

    ids: bytes
    flags: bytes
    images: int
    """How many of the record's images they have places for; the first ones."""
    shortened: bool
    """Whether its last turns were left out to fit ``max_length``."""


class Outcome(NamedTuple):
    """A record that was read: a problem, or its images, and its tokens where an encoding was given."""

    source: str
    place: str
    record: str
    problem: Problem | None
    images: tuple[str, ...] = ()
    digest: bytes = b""
    tokens: Tokens | None = None


def cores(*, alone: bool = False) -> int:
    """Processes that may work at once: the cores that are ours, shared by the ranks on this machine or ``alone``."""
    ours = processors()
    if alone:
        return ours
    ranks = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1"  # torchrun's, DeepSpeed's
    return max(1, ours // int(ranks))


def scan(
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
        encoding: also turn records into tokens, and judge whether they fit.
        workers: processes; None means all cores.
        keep_duplicates: do not count a record as a problem because the same images and conversation came before.
        read: is told how many bytes of all files have been read.

    Raises:
        DataError: a file cannot be read, or is a list that is no JSON.
        CheckpointError: no tokenizer where the encoding says.
    """
    if encoding is not None:
        encoding.open()  # here, so that a mistake is not a worker's
    work = functools.partial(judge, encoding=encoding)
    seen: dict[bytes, str] = {}
    for outcome in spread(work, _texts(files, read), workers=workers):
        if outcome.problem is not None or keep_duplicates:
            yield outcome
            continue
        where = f"{outcome.source}, {outcome.place}"
        first = seen.setdefault(outcome.digest, where)
        yield outcome if first is where else _duplicate(outcome, first)


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
        done: is told how many have been looked at.
    """
    bad: dict[str, tuple[str, str]] = {}
    look = functools.partial(_look, root=root, decode=decode)
    for number, (path, found) in enumerate(zip(paths, spread(look, paths, workers=workers), strict=True), 1):
        if found is not None:
            bad[path] = found
        if done is not None and number % _BATCH == 0:
            done(number)
    return bad


def image_problem(outcome: Outcome, bad: dict[str, tuple[str, str]]) -> Problem | None:
    """The problem of a record that uses one of the ``bad`` images, as :func:`check_images` gives them."""
    path = next((path for path in outcome.images if path in bad), None)
    if path is None:
        return None
    kind, reason = bad[path]
    text = f"{outcome.source}, record {outcome.record!r}: {reason.rstrip('.')}; mend the path or remove the record."
    return Problem(*outcome[:3], kind, text)


def spread(work: Callable[[T], R], items: Iterable[T], *, workers: int | None = None) -> Iterator[R]:
    """``map(work, items)`` over processes, in order, with few items waiting at any time.

    Few items are done in this process, which no other one can then be faster than.

    Raises:
        DataError: a process was killed (by the system, for want of memory, say).
    """
    source = iter(items)
    count = cores() if workers is None else workers
    first = list(islice(source, _WORTH))
    if count <= 1 or len(first) < _WORTH:
        yield from map(work, first)
        yield from map(work, source)
        return
    batches = _batches(first, source)
    # Not forked: this process may have threads by now. What the others import is light.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_leave_interrupts) as pool:
        waiting = deque(pool.submit(_each, work, batch) for batch in islice(batches, 3 * count))
        try:
            while waiting:
                yield from waiting.popleft().result()
                waiting.extend(pool.submit(_each, work, batch) for batch in islice(batches, 1))
        except BrokenProcessPool as error:
            raise DataError("a process that reads the data was killed; is there memory for fewer of them?") from error
        finally:
            for future in waiting:
                future.cancel()


def _leave_interrupts() -> None:
    """Ctrl-C goes to every process of a terminal; it is the first one's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _batches(first: list[T], rest: Iterator[T]) -> Iterator[list[T]]:
    for start in range(0, len(first), _BATCH):
        yield first[start : start + _BATCH]
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _each(work: Callable[[T], R], items: list[T]) -> list[R]:
    return [work(item) for item in items]


def _texts(files: Sequence[Path], read: Callable[[int], None] | None) -> Iterator[tuple[str, str, str]]:
    before = 0
    for path in files:
        told = None if read is None else functools.partial(_add, read, before)
        for place, text in record_texts(path, read=told):
            yield str(path), place, text
        if read is not None:
            before += path.stat().st_size
            read(before)


def _add(read: Callable[[int], None], before: int, size: int) -> None:
    read(before + size)


def judge(item: tuple[str, str, str], *, encoding: Encoding | None) -> Outcome:
    """Read one record, given its file, its place there and its text."""
    source, place, text = item
    try:
        record = parse_text(text, source=source, place=place)
        tokens = None if encoding is None else _tokens(record, encoding)
    except RecordError as error:
        name = record_id(text, place)
        return Outcome(source, place, name, Problem(source, place, name, error.kind, str(error)))
    said = [
        (message.role, [part if isinstance(part, str) else None for part in message.content])
        for message in record.messages
    ]
    digest = hashlib.blake2b(json.dumps([record.images, said]).encode(), digest_size=16).digest()
    return Outcome(source, place, record.id, None, record.images, digest, tokens)


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


# --- tokens ---------------------------------------------------------------------------------------------------------


class _Remembering:
    """A tokenizer that keeps the ids of what it has lately encoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.bos_id, self.eos_id = tokenizer.bos_id, tokenizer.eos_id
        self.encode: Callable[[str], list[int]] = functools.lru_cache(_REMEMBERED)(tokenizer.encode)


@functools.lru_cache(1)
def _tokenizer(encoding: Encoding, modified: int) -> _Remembering:
    return _Remembering(encoding.open())


def _tokens(record: Record, encoding: Encoding) -> Tokens:
    tokenizer = _tokenizer(encoding, encoding.tokenizer.stat().st_mtime_ns)
    encode_one = functools.partial(
        get_template(encoding.template).encode, tokenizer=tokenizer, tokens_per_image=encoding.tokens_per_image
    )
    encoded, used = fit(record, encode_one, encoding.max_length)
    supervised = np.asarray(encoded.labels) != IGNORE_INDEX
    flags = supervised * np.uint8(SUPERVISED) + np.asarray(encoded.image_mask) * np.uint8(IMAGE)
    ids = np.asarray(encoded.input_ids, np.int32)
    images = sum(message.images for message in record.messages[:used])
    return Tokens(ids.tobytes(), flags.astype(np.uint8).tobytes(), images, used < len(record.messages))


def fit(record: Record, encode_one: Callable[[list[Any]], Encoded], max_length: int) -> tuple[Encoded, int]:
    """The longest run of whole leading exchanges that fits, and how many messages it has.

    Raises:
        RecordError: not even the first exchange fits.
    """
    for used in range(len(record.messages), 1, -2):
        encoded = encode_one(list(record.messages[:used]))
        if len(encoded.input_ids) <= max_length:
            return encoded, used
    reason = (
        f"{record.where} has no answer within max_length={max_length} tokens, its first exchange has "
        f"{len(encoded.input_ids)}; shorten or remove it, or raise max_length."
    )
    raise RecordError(reason, TOO_LONG)


# --- images ---------------------------------------------------------------------------------------------------------


def _look(path: str, *, root: Path, decode: bool) -> tuple[str, str] | None:
    try:
        if not (root / path).is_file():
            return MISSING, f"the image {root / path} is missing"
        if decode:
            load_image(root / path, target=_GLANCE)
    except (ImageError, OSError, ValueError) as error:  # the last: a path that cannot be one
        return UNREADABLE, str(error)
    return None

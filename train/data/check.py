"""Check a data set before training: the problems of its records, and a file without the bad ones."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from mobillama_v.errors import DataError
from mobillama_v.json_stream import record_texts
from mobillama_v.train.data.encoding import SUPERVISED, Encoding
from mobillama_v.train.data.preprocess import Outcome, Problem, check_images, count_notes, partition, preprocess

Images = Literal["decode", "exists", "skip"]
Progress = Callable[..., None]
"""Called with a stage (``records``, ``images``), how much of it is done, and ``total``: bytes of records, images."""


@dataclass(frozen=True)
class Report:
    """What a check found; ``problems`` come in the order of the files."""

    files: list[str]
    records: int
    images: int
    """Different images that good records use."""
    tokens: int | None
    """Of all good records, images included; None where no model was given to count by."""
    supervised: int | None
    shortened: int | None
    """Records that lose their end to fit."""
    notes: dict[str, int]
    """What was changed in good records while they were read, and in how many, most first."""
    problems: list[Problem]

    @property
    def kinds(self) -> dict[str, int]:
        """How many problems of each kind, most first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def write(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            DataError: the file cannot be written.
        """
        with replacing(path) as file:
            json.dump(dataclasses.asdict(self) | {"kinds": self.kinds}, file, ensure_ascii=False, indent=1)


def check(
    files: Sequence[Path],
    *,
    image_root: Path,
    encoding: Encoding | None = None,
    images: Images = "decode",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check every record of the files, which are one mix: a duplicate may be in another file.

    Args:
        files: JSON lists or JSON lines of records.
        image_root: what image paths are relative to.
        encoding: also find records of which no answer would be left; None: texts are not measured.
        images: decode every image, look whether it exists, or leave images alone.
        workers: processes; None means all cores.
        progress: shows how far it is.

    Raises:
        DataError: a file that cannot be read at all.
        CheckpointError: no tokenizer where the encoding says.
    """
    size = sum(path.stat().st_size for path in files if path.is_file())
    counts = Counter[str]()

    def measured() -> Iterator[Outcome]:
        """The outcomes without their tokens, which are counted and need not stay in memory."""
        read = None if progress is None else functools.partial(progress, "records", total=size)
        for outcome in preprocess(files, encoding, workers=workers, read=read):
            counts["records"] += 1
            if outcome.tokens is not None and outcome.problem is None:
                counts["tokens"] += len(outcome.tokens.flags)
                counts["supervised"] += int(np.count_nonzero(outcome.tokens.flags & SUPERVISED))
                counts["shortened"] += outcome.tokens.shortened
            yield outcome._replace(tokens=None, digest=b"")

    def unusable(paths: list[str]) -> dict[str, tuple[str, str]]:
        if images == "skip":
            return {}
        done = None if progress is None else functools.partial(progress, "images", total=len(paths))
        return check_images(paths, image_root, decode=images == "decode", workers=workers, done=done)

    good, problems, paths = partition(measured(), unusable)
    return Report(
        files=[str(path) for path in files],
        records=counts["records"],
        images=len(paths),
        tokens=None if encoding is None else counts["tokens"],
        supervised=None if encoding is None else counts["supervised"],
        shortened=None if encoding is None else counts["shortened"],
        notes=count_notes(good),
        problems=problems,
    )


def write_clean(report: Report, path: Path) -> int:
    """Write the records that have no problem to one file, each as it stood; how many they are.

    Raises:
        DataError: the file cannot be written, or is one of those that were read.
    """
    if any(path.resolve() == Path(file).resolve() for file in report.files):
        raise DataError(f"{path} is one of the files that are checked; write the cleaned records to another one.")
    bad = {(problem.source, problem.place) for problem in report.problems}
    good = (text for source in report.files for place, text in record_texts(Path(source)) if (source, place) not in bad)
    return write_records(path, good)


def write_records(path: Path, texts: Iterable[str]) -> int:
    """Write records, given as JSON, to a file: a list where its name ends with ``.json``, else JSON lines; how many.

    Raises:
        DataError: the file cannot be written.
    """
    listed, count = path.suffix == ".json", 0
    with replacing(path) as file:
        for count, text in enumerate(texts, 1):
            lead = ("[\n" if count == 1 else ",\n") if listed else ""
            file.write(lead + (text.strip() if listed else _one_line(text)))
        if listed:
            file.write("\n]\n" if count else "[]\n")
    return count


def _one_line(text: str) -> str:
    text = text.strip()
    return (json.dumps(json.loads(text), ensure_ascii=False) if "\n" in text else text) + "\n"


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file that takes its name when it is whole; half a character is written as JSON escapes it.

    Raises:
        DataError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error}); choose another place.") from error
    finally:
        partial.unlink(missing_ok=True)

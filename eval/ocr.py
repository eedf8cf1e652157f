"""The words in a benchmark's pictures (:mod:`mobillama_v.ocr`), where no file of them came with the pictures.

What was read is kept in the folder of the run, by the content of the picture, so that no picture is read twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobillama_v import distributed
from mobillama_v.errors import ImageError
from mobillama_v.eval.benchmarks.base import Benchmark, Example
from mobillama_v.ocr import RAPIDOCR, Reader, library, with_tokens
from mobillama_v.progress import Progress

if TYPE_CHECKING:
    from mobillama_v.eval.store import Store


def asks_for_tokens(benchmark: Benchmark) -> bool:
    """Whether the pictures of a benchmark are to be read; those that know OCR have a field ``ocr``."""
    return getattr(benchmark, "ocr", None) == RAPIDOCR


def ocr_mode(ocr: str) -> str:
    """A benchmark's ``ocr`` as it stands beside a score.

    Raises:
        MissingExtraError: as :func:`library`.
    """
    return library() if ocr == RAPIDOCR else ocr


def _with_tokens(examples: Sequence[Example], tokens: Mapping[Path, Sequence[str]]) -> list[Example]:
    found = [[token for path in example.images for token in tokens.get(path, ())] for example in examples]
    return [
        dataclasses.replace(example, prompt=with_tokens(example.prompt, words))
        for example, words in zip(examples, found, strict=True)
    ]


def read_pictures(examples: Sequence[Example], store: Store) -> list[Example]:
    """Read the pictures that were not read in this run before, and put their tokens into the prompts.

    A picture that cannot be opened has no tokens here; asking about it will name it.

    Raises:
        MissingExtraError: there is something to read and no library.
        DataError: what was kept is damaged.
    """
    known = store.tokens()
    distributed.barrier()  # nobody writes before all have read
    paths = list(dict.fromkeys(path for example in examples for path in example.images))
    mine = paths[distributed.rank() :: distributed.world_size()]
    digests = {path: digest for path in mine if (digest := _digest(path))}
    todo = dict.fromkeys(digest for digest in digests.values() if digest not in known)
    first = {digest: path for path, digest in reversed(digests.items())}
    if todo:
        reader = Reader()
        with store.token_shard(distributed.rank()) as shard, Progress("pictures") as progress:
            for done, digest in enumerate(todo, 1):
                try:
                    known[digest] = reader.read(first[digest])
                except ImageError:
                    known[digest] = []  # and not kept: it may be mended
                else:
                    shard.add([{"sha256": digest, "image": first[digest].name, "tokens": known[digest]}])
                progress("ocr", done, len(todo))
    found = {path: known[digest] for path, digest in digests.items()}
    return _with_tokens(
        examples, {path: words for part in distributed.all_gather(found) for path, words in part.items()}
    )


def _digest(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""

"""Words in pictures, read by a library: the tokens of prompts where no file of them came with the pictures.

The library is RapidOCR (extra ``ocr``; Apache-2.0, its models are part of its package). Tokens have the form of
TextVQA's Rosetta file: single words, in reading order. What was read is kept in the folder of the run, by the content
of the picture, so that no picture is read twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama_v import distributed
from mobillama_v.errors import ImageError, MissingExtraError
from mobillama_v.eval.benchmarks.base import SHORT_ANSWER, Benchmark, Example
from mobillama_v.progress import Progress

if TYPE_CHECKING:
    from mobillama_v.eval.store import Store

RAPIDOCR = "rapidocr"
"""The value of a benchmark's ``ocr`` that has its pictures read."""

Box = Sequence[Sequence[float]]


def tokens_line(tokens: Sequence[str]) -> str:
    """What LLaVA-1.5 puts after a question to tell of the words in its picture; it stays where there are none."""
    return f"\nReference OCR token: {', '.join(tokens)}"


def asks_for_tokens(benchmark: Benchmark) -> bool:
    """Whether the pictures of a benchmark are to be read; those that know OCR have a field ``ocr``."""
    return getattr(benchmark, "ocr", None) == RAPIDOCR


def library() -> str:
    """The name and version of the library, which belong to the tokens that it finds.

    Raises:
        MissingExtraError: it is not installed.
    """
    missing = [name for name in (RAPIDOCR, "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"reading the words in pictures needs {missing[0]}: pip install 'mobillama-v[ocr]'.")
    return f"{RAPIDOCR} {importlib.metadata.version(RAPIDOCR)}"


def ocr_mode(ocr: str) -> str:
    """A benchmark's ``ocr`` as it stands beside a score.

    Raises:
        MissingExtraError: as :func:`library`.
    """
    return library() if ocr == RAPIDOCR else ocr


class Reader:
    """Reads words; the library's models are loaded when it is made."""

    def __init__(self) -> None:
        library()
        from rapidocr import RapidOCR

        threads = int(os.environ.get("OMP_NUM_THREADS", "-1"))  # as torchrun sets it for several processes
        self._engine: Any = RapidOCR(
            params={"Global.log_level": "error", "EngineConfig.onnxruntime.intra_op_num_threads": threads}
        )

    def read(self, path: Path) -> list[str]:
        """The words in a picture, in reading order.

        Raises:
            ImageError: it cannot be read.
        """
        import numpy as np

        from mobillama_v.images import load_image

        pixels = np.asarray(load_image(path))[:, :, ::-1]  # it wants BGR, as OpenCV has it
        found = self._engine(np.ascontiguousarray(pixels))
        if not found.txts:
            return []
        lines = [found.txts[i] for i in reading_order([box.tolist() for box in found.boxes])]
        return [word for line in lines for word in line.split()]


def reading_order(boxes: Sequence[Box]) -> list[int]:
    """Indices of boxes (four corners, x to the right and y down): rows from the top, each from the left.

    A box is in the row above it if its middle is not below the middle box's lower edge.
    """
    tops = [min(y for _, y in box) for box in boxes]
    bottoms = [max(y for _, y in box) for box in boxes]
    lefts = [min(x for x, _ in box) for box in boxes]
    rows: list[list[int]] = []
    for i in sorted(range(len(boxes)), key=lambda i: tops[i] + bottoms[i]):
        first = rows[-1][0] if rows else None
        if first is not None and (tops[i] + bottoms[i]) / 2 < bottoms[first] - (bottoms[first] - tops[first]) / 4:
            rows[-1].append(i)
        else:
            rows.append([i])
    return [i for row in rows for i in sorted(row, key=lambda i: lefts[i])]


def with_tokens(examples: Sequence[Example], tokens: Mapping[Path, Sequence[str]]) -> list[Example]:
    """The examples with the tokens of their pictures in the prompt: after the question, as LLaVA-1.5 has them."""
    found = []
    for example in examples:
        question = example.prompt.removesuffix(SHORT_ANSWER)
        line = tokens_line([token for path in example.images for token in tokens.get(path, ())])
        found.append(dataclasses.replace(example, prompt=question + line + example.prompt[len(question) :]))
    return found


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
    return with_tokens(
        examples, {path: words for part in distributed.all_gather(found) for path, words in part.items()}
    )


def _digest(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""

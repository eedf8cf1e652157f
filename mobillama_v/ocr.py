"""Words in pictures, read by a library, and how a prompt holds them.

The library is RapidOCR (extra ``ocr``; Apache-2.0, its models are part of its package). Tokens have the form of
TextVQA's Rosetta file: single words, in reading order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama_v.errors import MissingExtraError
from mobillama_v.prompt import SHORT_ANSWER

if TYPE_CHECKING:
    from PIL.Image import Image

RAPIDOCR = "rapidocr"
"""The library's name."""

Box = Sequence[Sequence[float]]


def tokens_line(tokens: Sequence[str]) -> str:
    """What LLaVA-1.5 puts after a question to tell of the words in its picture; it stays where there are none."""
    return f"\nReference OCR token: {', '.join(tokens)}"


def with_tokens(question: str, tokens: Sequence[str]) -> str:
    """The question with the words of its pictures after it, and a request for a short answer last, as in LLaVA-1.5."""
    text = question.removesuffix(SHORT_ANSWER)
    return text + tokens_line(tokens) + question[len(text) :]


def library() -> str:
    """The name and version of the library, which belong to the tokens that it finds.

    Raises:
        MissingExtraError: it is not installed.
    """
    import importlib.metadata

    missing = [name for name in (RAPIDOCR, "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"reading the words in pictures needs {missing[0]}: pip install 'mobillama-v[ocr]'.")
    return f"{RAPIDOCR} {importlib.metadata.version(RAPIDOCR)}"


class Reader:
    """Reads words, one picture at a time; the library's models are loaded when it is made."""

    def __init__(self) -> None:
        library()
        from rapidocr import RapidOCR

        threads = int(os.environ.get("OMP_NUM_THREADS", "-1"))  # as torchrun sets it for several processes
        self._lock = threading.Lock()  # the library keeps what it found in itself
        self._engine: Any = RapidOCR(
            params={"Global.log_level": "error", "EngineConfig.onnxruntime.intra_op_num_threads": threads}
        )

    def read(self, picture: Image | Path) -> list[str]:
        """The words in a picture or in a file of one, in reading order.

        Raises:
            ImageError: it cannot be read.
        """
        import numpy as np

        from mobillama_v.images import load_image

        pixels = np.asarray(load_image(picture))[:, :, ::-1]  # it wants BGR, as OpenCV has it
        with self._lock:
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

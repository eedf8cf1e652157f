"""What the frozen stem sees in each training picture, computed once: gathered cells and class probabilities."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps

from mobillama_v.images import ImageTransform, load_image
from mobillama_v.model.vision.lite0 import CLASSES, GATHERED, GRID

_BATCH = 16


class StemCache:
    """A folder with ``cells.npy`` float16 [N,P,GATHERED] and ``probabilities.npy`` float16 [N,1000], a row an image.

    ``words.npy`` float16 [N,WORDS] is there for photographs from which :mod:`nano.photo_words` has learnt.
    """

    def __init__(self, folder: Path) -> None:
        self.words_file = folder / "words.npy"
        self.names: list[str] = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        self.row = {name: i for i, name in enumerate(self.names)}
        self.cells = np.load(folder / "cells.npy", mmap_mode="r")
        self.probabilities = np.load(folder / "probabilities.npy", mmap_mode="r")
        self.words = np.load(self.words_file) if self.words_file.exists() else None


def compute(
    stem: Any, transform: ImageTransform, root: Path, names: list[str], folder: Path, *, mirrored: bool = False
) -> StemCache:
    """Fill the cache for images below ``root``, or their mirror images; a killed run goes on where it was."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "names.json"
    if not listed.exists() or json.loads(listed.read_text(encoding="utf-8")) != names:
        (folder / "done").write_text("0")
        for file, shape in (("cells.npy", (GRID * GRID, GATHERED)), ("probabilities.npy", (CLASSES,))):
            np.lib.format.open_memmap(folder / file, mode="w+", dtype=np.float16, shape=(len(names), *shape))
        listed.write_text(json.dumps(names), encoding="utf-8")
    cells = np.load(folder / "cells.npy", mmap_mode="r+")
    probabilities = np.load(folder / "probabilities.npy", mmap_mode="r+")
    start, began = int((folder / "done").read_text()), time.time()
    stem = stem.eval().to(memory_format=torch.channels_last)

    def encode_image(first: int) -> tuple[int, np.ndarray, np.ndarray]:
        images = [load_image(root / name) for name in names[first : first + _BATCH]]
        pixels = transform.batch([ImageOps.mirror(image) for image in images] if mirrored else images)
        with torch.inference_mode():
            seen, _, logits = stem(torch.from_numpy(pixels))
            return first, seen.half().numpy(), logits.softmax(-1).half().numpy()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small convolutions: a picture a thread is 1.4 times as fast as all threads on a picture
    try:
        with ThreadPoolExecutor(threads) as pool:
            for first, seen, shares in pool.map(encode_image, range(start, len(names), _BATCH)):
                last = first + len(seen)
                cells[first:last], probabilities[first:last] = seen, shares
                (folder / "done").write_text(str(last))
                if first // _BATCH % 80 == 0:
                    rate = (last - start) / (time.time() - began)
                    print(f"stem: {last:,} of {len(names):,} pictures, {rate:.0f}/s", flush=True)
    finally:
        torch.set_num_threads(threads)
    return StemCache(folder)

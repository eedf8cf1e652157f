"""Hugging Face datasets on disk, in the layout in which lmms-lab publishes benchmarks.

A dataset is a folder of ``[<config>/ or data/]<split>-*.parquet``, as ``hf download --repo-type dataset`` gives it, or
of what ``save_to_disk`` writes. Its pictures are written once to ``extracted_images/`` beside it, since everything else
here reads pictures from files.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from mobillama_v.errors import DataError
from mobillama_v.hf_datasets import is_saved, open_rows, reading

_EXTRACTED = "extracted_images"


def read(data: Path, split: str, *, config: str | None = None) -> list[dict[str, Any]] | None:
    """The rows of a split, pictures as their undecoded ``{"bytes", "path"}``; None where ``data`` holds no dataset.

    Raises:
        MissingExtraError: the library ``datasets`` is not installed.
        DataError: the dataset is there and cannot be read.
    """
    folders = [data / config, data] if config else [data, data / "data"]
    parquet = next((files for folder in folders if (files := sorted(folder.glob(f"{split}-*.parquet")))), None)
    saved = next((folder for folder in (*folders, *(each / split for each in folders)) if is_saved(folder)), None)
    source = saved if parquet is None else parquet
    if source is None:
        return None
    with reading(data):
        return list(open_rows(source, split))


def image_file(data: Path, image: Any, name: str) -> Path | None:
    """The file of a row's picture, written the first time; None where the row has none.

    Raises:
        DataError: the picture is not there, or cannot be written.
    """
    if image is None:
        return None
    content = image.get("bytes") if isinstance(image, dict) else None
    if content is None:
        raise DataError(f"the picture {name!r} of the dataset in {str(data)!r} has no bytes; download it again.")
    # The digest keeps apart names that differ only in what no file name may hold.
    digest = hashlib.sha256(content).hexdigest()[:8]
    file = data / _EXTRACTED / f"{re.sub(r'[^0-9A-Za-z_-]+', '_', name)}-{digest}.img"
    if not file.is_file() or file.stat().st_size != len(content):
        try:
            file.parent.mkdir(exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_bytes(content)
            partial.replace(file)
        except OSError as error:
            raise DataError(
                f"pictures of the dataset cannot be written to {str(file.parent)!r} ({error.strerror}); copy the "
                "dataset to where you may write."
            ) from None
    return file

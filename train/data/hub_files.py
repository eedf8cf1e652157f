"""Files of Hugging Face datasets: which belong to a split, and images that are taken out of them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from mobillama_v.errors import DataError, ImageError
from mobillama_v.hf_datasets import is_saved

_SHARD = re.compile(r"(.+)-\d+-of-\d+\.parquet")


def is_dataset(folder: Path) -> bool:
    """Whether ``folder`` is one that holds a dataset, and not images with their texts."""
    return folder.is_dir() and (is_saved(folder) or next(folder.rglob("*.parquet"), None) is not None)


def parquet_files(source: Path, split: str | None) -> list[Path]:
    """The files of a split, which names such as ``train-00000-of-00002.parquet`` name; never those of several.

    Args:
        source: a folder, or one file, which is taken whatever its name.
        split: its name; None where there is only one.

    Raises:
        DataError: there are splits, and not the one that is asked for.
    """
    if not source.is_dir():
        return [source]
    files = {path: _SHARD.fullmatch(path.name) for path in sorted(source.rglob("*.parquet"))}
    splits = sorted({match[1] for match in files.values() if match})
    found = [path for path, at in files.items() if split is None or (split == at[1] if at else split in path.name)]
    if not found or (split is None and len(splits) > 1):
        problem = f"has the splits {', '.join(splits)}; choose one with" if splits else "is not split; leave out"
        raise DataError(f"the dataset in {source} {problem} --split.")
    return found


def write_image(given: dict[str, Any], images: Path) -> str:
    """The name of a row's image in ``images``, which its bytes make: one that came twice is written once.

    Raises:
        ImageError: the image is not there.
        DataError: it cannot be written.
    """
    content = given.get("bytes")
    if content is None:
        try:
            content = Path(given["path"]).read_bytes()
        except (OSError, TypeError, KeyError) as error:
            raise ImageError(f"its image is not there ({error}); save the dataset again.") from error
    name = hashlib.sha256(content).hexdigest()[:24] + ".img"
    if not (images / name).is_file():
        try:
            images.mkdir(parents=True, exist_ok=True)
            partial = images / f".{name}.partial"
            partial.write_bytes(content)
            partial.replace(images / name)
        except OSError as error:
            raise DataError(
                f"images cannot be written to {images} ({error.strerror}); choose another --images."
            ) from error
    return name

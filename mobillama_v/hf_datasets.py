"""Hugging Face datasets that lie on disk: folders of ``.parquet`` files, or what ``save_to_disk`` wrote.

The library that reads them is imported when there is one to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mobillama_v.errors import DataError, MobiLlamaVError, needs

_ROWS = 64  # that are in memory at a time


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote ``folder``."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """What goes wrong while a dataset is opened or its rows are read, said in a sentence.

    Raises:
        MissingExtraError: the library ``datasets`` is not installed.
        DataError: the dataset in ``folder`` cannot be read.
    """
    with needs("a Hugging Face dataset"):
        import datasets  # noqa: F401
    try:
        yield
    except MobiLlamaVError:
        raise
    except Exception as error:  # pyarrow and datasets raise a dozen types on damaged files
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the dataset in {str(folder)!r} cannot be read ({reason}); download it again.") from error


def open_rows(source: Path | Sequence[Path], split: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of parquet files, or of a ``split`` that ``save_to_disk`` wrote, images not decoded.

    Images are ``{"bytes", "path"}``, alone and in lists. Classes have their names.

    Raises:
        DataError: there are splits, and not the one that is asked for.
    """
    import datasets

    if isinstance(source, Path):
        found = datasets.load_from_disk(str(source))
    else:
        found = datasets.Dataset.from_parquet([str(file) for file in source])
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(f"the dataset in {str(source)!r} has the splits {', '.join(found)}; choose one of them.")
        found = found[split]
    classes = {name: kind.names for name, kind in found.features.items() if isinstance(kind, datasets.ClassLabel)}
    for batch in found.with_format("arrow").iter(batch_size=_ROWS):
        for row in batch.to_pylist():
            yield row | {name: names[row[name]] for name, names in classes.items() if row[name] in range(len(names))}

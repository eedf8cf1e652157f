"""Folders of a training: written elsewhere and renamed, so that a folder under its own name is a whole one.

``output/`` holds ``checkpoint-<step>/``, ``metrics.jsonl``, at the end ``final/``, where there is a validation
``best/`` and ``validation/``, and, after a kill, perhaps leftovers in ``.partial/`` that the next start removes.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mobillama_v.errors import CheckpointError

PARTIAL = ".partial"
FINAL, BEST = "final", "best"
_NAME = re.compile(r"checkpoint-(\d+)")
_DISK = re.compile(r"PytorchStreamWriter|inline_container|iostream error|os error (28|122|27|30)\b")


def partial_folder(output: Path) -> Path:
    """An empty folder on the same file system, to write in."""
    folder = output / PARTIAL
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not output.is_dir():
        return []
    found = [(int(match[1]), path) for path in output.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Raise what a full disk causes while a training writes to ``output`` as an error that can be read.

    Raises:
        CheckpointError: the disk is full, or takes no files.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save and safetensors raise errors of their own in place of the system's.
        full = error.errno in _FULL if isinstance(error, OSError) else _DISK.search(str(error))
        if not full:
            raise
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
        reason = getattr(error, "strerror", None) or "the disk is full"
        raise CheckpointError(
            f"the training cannot write to {str(output)!r} ({reason}). Its last complete checkpoint is kept: make "
            "room, and go on with --resume."
        ) from error


def publish(written: Path, target: Path) -> None:
    """Give a completely written folder its name, after its bytes are on the disk; an older one of that name goes."""
    for path in written.rglob("*"):
        _sync(path)
    _sync(written)
    older = _set_aside(target)
    os.replace(written, target)
    _sync(target.parent)
    if older is not None:
        shutil.rmtree(older)


def remove(folder: Path) -> None:
    """Remove a folder in such a way that a kill leaves no half of it under its name."""
    doomed = _set_aside(folder)
    if doomed is not None:
        shutil.rmtree(doomed)


def _set_aside(folder: Path) -> Path | None:
    if not folder.exists():
        return None
    doomed = folder.parent / PARTIAL / f"removed-{folder.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    doomed.parent.mkdir(exist_ok=True)
    os.replace(folder, doomed)
    return doomed


def rotate(output: Path, keep: int) -> None:
    """Remove all checkpoints but the ``keep`` latest."""
    for folder in checkpoints(output)[:-keep]:
        remove(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

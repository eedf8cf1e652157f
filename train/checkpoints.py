"""Folders of a training: written elsewhere and renamed, so that a folder under its own name is a whole one.

``output/`` holds ``checkpoint-<step>/``, ``metrics.jsonl``, at the end ``final/``, where there is a validation
``best/`` and ``validation/``, and, after a kill, perhaps leftovers in ``.partial/`` that the next start removes.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

PARTIAL = ".partial"
FINAL, BEST = "final", "best"
_NAME = re.compile(r"checkpoint-(\d+)")


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

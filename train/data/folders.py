"""Folders of images: a caption in the ``.txt`` file beside each, or a sub-folder for each class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mobillama_v.errors import DataError, ImageError
from mobillama_v.images import find_images
from mobillama_v.train.data.preprocess import Problem

DESCRIBE, NAME = "Describe the image.", "What is this?"
NO_CAPTION = "no caption"


class Captioned(NamedTuple):
    """An image by its path in the folder, with what is asked and answered about it."""

    name: str
    image: str
    question: str
    answer: str


def read(folder: Path, question: str | None = None) -> Iterator[Captioned | Problem]:
    """The images of a folder and of all folders in it.

    Where any image has a ``.txt`` file beside it, these hold the answers, and an image without one is a problem.
    Otherwise the name of the folder is the answer, its ``_`` read as blanks.

    Args:
        folder: holds the images.
        question: of all of them; None: :data:`DESCRIBE` or, of classes, :data:`NAME`.

    Raises:
        DataError: it holds no images, or there is neither a text nor a class.
    """
    images = [image for each in sorted([folder, *_folders(folder)]) for image in _images(each)]
    if not images:
        raise DataError(f"{folder} holds no images; name a folder with .jpg, .png or .webp files in it.")
    captioned = any(image.with_suffix(".txt").is_file() for image in images)
    if not captioned and all(image.parent == folder for image in images):
        raise DataError(
            f"{folder} holds images without captions; put a .txt file beside each, or each class in a folder of its "
            "own."
        )
    for image in images:
        path = image.relative_to(folder).as_posix()
        found = _caption(image) if captioned else _class(image, folder)
        if isinstance(found, DataError):
            yield Problem(str(folder), path, path, NO_CAPTION, str(found))
        else:
            yield Captioned(path, path, question or (DESCRIBE if captioned else NAME), found)


def _folders(folder: Path) -> list[Path]:
    return [each for each in folder.rglob("*") if each.is_dir() and not each.name.startswith(".")]


def _images(folder: Path) -> list[Path]:
    try:
        return find_images(folder)
    except ImageError:
        return []


def _caption(image: Path) -> str | DataError:
    path = image.with_suffix(".txt")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        return DataError(f"{path} cannot be read ({error}); every image needs its text beside it.")
    return text or DataError(f"{path} is empty; write the caption of its image.")


def _class(image: Path, folder: Path) -> str | DataError:
    if image.parent == folder:
        return DataError(f"{image} is in no class; move it to the folder of its class.")
    return image.parent.name.replace("_", " ").strip() or DataError(f"{image.parent} is no name of a class; rename it.")

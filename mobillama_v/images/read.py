"""Reading images from anywhere: files, bytes, streams and Pillow images to upright 8-bit RGB."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from mobillama_v.errors import ImageError
from mobillama_v.images.inline import decode_data_url, is_data_url
from mobillama_v.images.kinds import HEAD, is_heif, looks_like_picture, raw_preview, unread_format
from mobillama_v.images.upright import quiet, upright_rgb

# The bound above which Pillow itself refuses to open a file (twice its warning bound), 0.7 GB at the 4 bytes that it
# keeps for an RGB pixel. A higher one could not take effect without changing Pillow's global for the whole process,
# and a lower one would refuse photographs and scans that people really have.
MAX_PIXELS = 178_956_970

#: Formats that are tried, by Pillow's names: rasters decoded inside Pillow. Formats that start another program (EPS),
#: that need a stub handler (HDF5, GRIB), that match stray bytes for want of a real signature (TGA, PCX, SGI, DIB), that
#: hold an image larger than their header says (ICO, ICNS) or that decode in slow Python (QOI) are left out.
#: Multi-picture JPEGs (MPO) are opened through JPEG, animated PNGs through PNG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

_SUBFILE = 254  # the tag of TIFF that says whether a picture is a preview of another
_COMMON = {"JPEG": b"\xff\xd8", "PNG": b"\x89PNG", "GIF": b"GIF8", "BMP": b"BM"}


def load_image(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image.Image,
    *,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
    target: int | None = None,
) -> Image.Image:
    """Read one image as an upright 8-bit RGB image that holds no file and no metadata.

    Args:
        source: a path, a data URL, the bytes of a file, a binary stream (read to its end, left open) or a Pillow image
            (left as it is). Of an animation or a multi-page file the first frame is taken; of a Pillow image, the
            current one.
        max_pixels: refuse an image of more pixels (width x height) from its header, before its pixels are allocated.
            Values above :data:`MAX_PIXELS` have no effect, because Pillow refuses there.
        name: what messages call the source; by default its path, or "the image".
        target: a side in pixels. A JPEG is then decoded at 1/2, 1/4 or 1/8 scale where its smaller side stays at least
            this long, which is several times faster; other formats are not affected.

    Returns:
        An image of mode RGB. Transparency is composited on white; 16-bit grey keeps its high byte; 32-bit integer
        and float grey is scaled from the first of 0..1 (float only), 0..255, 0..65535 and its own range that holds it.

    Raises:
        ImageError: the source is missing, not readable, empty, not an image, damaged, zero-sized or too large.
        ValueError: ``target`` is less than 1.
    """
    if target is not None and target < 1:
        raise ValueError(f"target must be at least 1 pixel, not {target}")
    if isinstance(source, Image.Image):
        where = name or "the image"
        check_size(source.size, max_pixels, where)
        with refuse_damage(where):
            upright = upright_rgb(source, where)
            return upright.copy() if upright is source else upright
    if isinstance(source, str) and is_data_url(source):
        source, name = decode_data_url(source), name or "the data URL"
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        where = name or repr(path)
        try:
            with open(path, "rb") as file:
                # A pipe, as in `ask <(curl ...)`, cannot be rewound.
                return _decode(file if file.seekable() else BytesIO(file.read()), max_pixels, where, target)
        except FileNotFoundError:
            raise ImageError(f"{where} does not exist: check the path of the image") from None
        except IsADirectoryError:
            raise ImageError(f"{where} is a directory: name an image inside it") from None
        except PermissionError:
            raise ImageError(f"{where} may not be read: check the permissions of the file") from None
        except (OSError, ValueError) as error:  # a bad descriptor, a path too long or with a NUL in it
            raise ImageError(f"{where} cannot be read ({error}): check the path of the image") from None
    where = name or "the image"
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    else:
        try:
            data = source.read()
        except OSError as error:
            raise ImageError(f"{where} cannot be read ({error}): check where it comes from") from None
    return _decode(BytesIO(data), max_pixels, where, target)


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height that the header of an image's file says; no pixel is decoded.

    Raises:
        ImageError: ``data``, which messages call ``name``, is not an image.
    """
    with _opened(BytesIO(data), name) as image:
        return image.size


def find_images(path: Path) -> list[Path]:
    """List what looks like a picture in a folder, in natural order ("2.png" before "10.png").

    Pictures of formats that are not read are listed too, so that whoever reads the list can say so. Hidden files and
    sub-folders are skipped. Files are known by their suffix, those of other suffixes by their first bytes.

    Raises:
        ImageError: ``path`` is not a folder that can be listed, or it holds no image.
    """
    try:
        entries = [each for each in Path(path).iterdir() if not each.name.startswith(".")]
        files = [each for each in entries if each.is_file() or (each.is_symlink() and not each.exists())]
    except OSError as error:
        reason = error.strerror or error
        raise ImageError(f"{str(path)!r} cannot be listed ({reason}): name a folder that holds images") from None
    found = [each for each in files if looks_like_picture(each)]
    if not found:
        raise ImageError(f"{str(path)!r} holds no image: name a folder with .jpg, .png or .webp files in it")
    return sorted(found, key=_natural_key)


def _decode(file: BinaryIO, max_pixels: int, where: str, target: int | None) -> Image.Image:
    with _opened(file, where) as image:
        check_size(image.size, max_pixels, where)
        if target is not None:
            image.draft(None, (target, target))
        return upright_rgb(image, where)


@contextmanager
def _opened(file: BinaryIO, where: str) -> Iterator[Image.Image]:
    """An image whose pixels are still to be decoded; what goes wrong meanwhile is an ImageError."""
    head = file.read(HEAD)
    if not head:
        raise ImageError(f"{where} is empty (0 bytes): copy or download it again")
    file.seek(0)
    if what := unread_format(head):
        raise ImageError(f"{where} is {what}")
    with refuse_damage(where):
        with quiet():
            opened = Image.open(file, formats=_formats(head))
        with opened as image:
            if image.format == "TIFF" and (what := raw_preview(image.getexif().get(_SUBFILE))):
                raise ImageError(f"{where} is {what}")
            yield image


def check_size(size: tuple[int, int], max_pixels: int, where: str) -> None:
    """Refuse an image, called ``where``, of no pixels or of more than ``max_pixels``.

    Raises:
        ImageError: its size is out of bounds.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{where} is {width} x {height} pixels: both sides must be at least 1")
    if width * height > max_pixels:
        raise ImageError(
            f"{where} is {width} x {height} pixels, more than the {max_pixels:,} allowed: make it smaller first"
        )


@contextmanager
def refuse_damage(where: str) -> Iterator[None]:
    """Turn whatever Pillow raises while it decodes the image called ``where`` into one error.

    Raises:
        ImageError: the image is damaged, too large, or not an image.
    """
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{where} needs more memory than there is: make it smaller first") from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"{where} has more than the {MAX_PIXELS:,} pixels that can be read: make it smaller first"
        ) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{where} is not an image that can be read, or it is damaged: give a JPEG, PNG, WebP, GIF, BMP or TIFF file"
        ) from None
    except Exception as error:  # on damaged data Pillow's decoders raise a dozen types, from OSError to IndexError
        reason = str(error) or type(error).__name__
        raise ImageError(f"{where} is damaged ({reason}): copy or export it again") from error


def _formats(head: bytes) -> tuple[str, ...]:
    """Pillow's names of the formats that a file may have whose first bytes these are.

    What decodes HEIC is imported for such a file alone, and Pillow's rarer formats for those that need them.
    """
    if is_heif(head):
        import pillow_heif

        pillow_heif.register_heif_opener()
        return ("HEIF",)
    found = tuple(name for name, start in _COMMON.items() if head.startswith(start))
    if not found:
        Image.init()  # imports forty modules
    return found or tuple(name for name in FORMATS if name in Image.OPEN)


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name

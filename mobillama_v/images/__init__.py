"""Reading images from anywhere, and turning them into the array that a vision tower takes.

:func:`load_image` gives an upright 8-bit RGB image or an :class:`~mobillama_v.errors.ImageError`;
:class:`ImageTransform` resizes and normalizes; :func:`find_images` lists a folder.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from mobillama_v.errors import ConfigError, ImageError
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

#: Lower-case file suffixes that :func:`find_images` takes for images.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".avif"),
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_MAX_SIZE = 4096  # pixels a side; a mistyped configuration must not ask for terabytes
_MAX_ASPECT = 8
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def load_image(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image.Image,
    *,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
    target: int | None = None,
) -> Image.Image:
    """Read one image as an upright 8-bit RGB image that holds no file and no metadata.

    Args:
        source: a path, the bytes of a file, a binary stream (read to its end, left open) or a Pillow image (left as it
            is). Of an animation or a multi-page file the first frame is taken; of a Pillow image, the current one.
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
        _check_size(source.size, max_pixels, where)
        with _damage_refused(where):
            upright = upright_rgb(source)
            return upright.copy() if upright is source else upright
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


def find_images(path: Path) -> list[Path]:
    """List the images in a folder, in natural order ("2.png" before "10.png").

    Files are told by their suffix (:data:`SUFFIXES`, any case) and are not opened; hidden files and sub-folders are
    skipped.

    Raises:
        ImageError: ``path`` is not a folder that can be listed, or it holds no image.
    """
    try:
        entries = [e for e in Path(path).iterdir() if e.suffix.lower() in SUFFIXES and not e.name.startswith(".")]
        found = [e for e in entries if e.is_file()]
    except OSError as error:
        reason = error.strerror or error
        raise ImageError(f"{str(path)!r} cannot be listed ({reason}): name a folder that holds images") from None
    if not found:
        raise ImageError(f"{str(path)!r} holds no image: name a folder with .jpg, .png or .webp files in it")
    return sorted(found, key=_natural_key)


@dataclass(frozen=True)
class ImageTransform:
    """The geometry and the normalization that a vision tower was trained with.

    Modes:
        ``pad``: the long side is resized to ``size`` and the rest of the square is ``background``, the image in the
        center. The image is resized before it is padded, since padding first, as LLaVA-1.5 does, needs a canvas of long
        side x long side. Both agree but for the seam where the padding is a whole number of output pixels (4:3 at 336);
        elsewhere the content lies up to about half an output pixel apart.
        ``crop``: the short side is resized to ``size`` (the long one to ``int(size * long / short)``) and the center is
        kept, with torchvision's rounding. An image longer than 8:1 is first cut to 8:1 around its center, so that a
        panorama does not become millions of pixels wide.
        ``squash``: both sides are resized to ``size``; the aspect ratio is lost.

    Attributes:
        size: side of the output, in pixels (1 to 4096).
        mode: one of the modes above.
        mean: per-channel mean of values in 0..1; OpenAI CLIP's by default.
        std: per-channel standard deviation of values in 0..1; OpenAI CLIP's by default.
        background: RGB of the padding in 0..255; by default the CLIP mean color, as LLaVA-1.5 pads.
        resample: the resizing filter, antialiased.

    Raises:
        ConfigError: a value is out of range or of the wrong type.
    """

    size: int
    mode: Literal["pad", "crop", "squash"] = "pad"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    background: tuple[int, int, int] = (122, 116, 104)
    resample: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size <= _MAX_SIZE:
            raise ConfigError(f"image size must be a whole number of pixels from 1 to {_MAX_SIZE}, not {self.size!r}")
        for field, allowed in (("mode", ("pad", "crop", "squash")), ("resample", tuple(_RESAMPLING))):
            value = getattr(self, field)
            if value not in allowed:
                raise ConfigError(f"image {field} must be one of {', '.join(allowed)}, not {value!r}")
        for field in ("mean", "std", "background"):
            value = getattr(self, field)
            if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(_is_finite(v) for v in value):
                raise ConfigError(f"image {field} must be three finite numbers, not {value!r}")
            object.__setattr__(self, field, tuple(value))
        if min(self.std) <= 0:
            raise ConfigError(f"image std must be above 0 in every channel, not {self.std!r}")
        if not all(type(v) is int and 0 <= v <= 255 for v in self.background):
            raise ConfigError(f"image background must be three whole numbers from 0 to 255, not {self.background!r}")

    def apply(self, image: Image.Image) -> Image.Image:
        """The geometry alone: the RGB image of ``size`` x ``size`` pixels that the tower sees, before normalization.

        Any Pillow image is taken and is first made upright RGB as :func:`load_image` does; it is not changed.

        Raises:
            ImageError: the image is zero-sized or does not decode.
        """
        _check_size(image.size, MAX_PIXELS, "the image")
        with _damage_refused("the image"):
            image = upright_rgb(image)
        width, height = image.size
        size, resample = self.size, _RESAMPLING[self.resample]
        if self.mode == "squash":
            return image.resize((size, size), resample)
        if self.mode == "crop":
            return _center_crop(image, size, resample)
        long = max(width, height)
        inner = (max(1, round(width * size / long)), max(1, round(height * size / long)))
        canvas = Image.new("RGB", (size, size), self.background)
        canvas.paste(image.resize(inner, resample), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return canvas

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Transform one image to float32 ``[3, size, size]`` (RGB, rows, columns), ``(value / 255 - mean) / std``.

        The array is C-contiguous.

        Raises:
            ImageError: the image is zero-sized or does not decode.
        """
        pixels = np.asarray(self.apply(image), dtype=np.float32) / np.float32(255)
        normalized = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normalized.transpose(2, 0, 1))

    def batch(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Transform N images (also none) to float32 ``[N, 3, size, size]``, C-contiguous.

        Raises:
            ImageError: an image is zero-sized or does not decode.
        """
        out = np.empty((len(images), 3, self.size, self.size), dtype=np.float32)
        for i, image in enumerate(images):
            out[i] = self(image)
        return out


def _decode(file: BinaryIO, max_pixels: int, where: str, target: int | None) -> Image.Image:
    if not file.read(1):
        raise ImageError(f"{where} is empty (0 bytes): copy or download it again")
    file.seek(0)
    with _damage_refused(where):
        with quiet():
            opened = Image.open(file, formats=_installed_formats())
        with opened as image:
            _check_size(image.size, max_pixels, where)
            if target is not None:
                image.draft(None, (target, target))
            return upright_rgb(image)


def _check_size(size: tuple[int, int], max_pixels: int, where: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{where} is {width} x {height} pixels: both sides must be at least 1")
    if width * height > max_pixels:
        raise ImageError(
            f"{where} is {width} x {height} pixels, more than the {max_pixels:,} allowed: make it smaller first"
        )


def _center_crop(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    # A box given to resize() would do without the cut, but Pillow rounds its edges to float32, which moves pixel values
    # away from those of the resize-then-crop that towers were trained with.
    short = min(image.size)
    image = _center(image, min(image.width, _MAX_ASPECT * short), min(image.height, _MAX_ASPECT * short))
    image = image.resize((int(size * image.width / short), int(size * image.height / short)), resample)
    return _center(image, size, size)


def _center(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


@contextmanager
def _damage_refused(where: str) -> Iterator[None]:
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


@functools.cache
def _installed_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name

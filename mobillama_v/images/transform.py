"""Turning an image into the array that a vision tower takes: geometry and normalization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from PIL import Image

from mobillama_v.errors import ConfigError
from mobillama_v.fields import is_finite, shown
from mobillama_v.images.read import MAX_PIXELS, check_size, refuse_damage
from mobillama_v.images.upright import upright_rgb

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_MAX_SIZE = 4096  # pixels a side; a mistyped configuration must not ask for terabytes
_MAX_ASPECT = 8
_RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("bicubic", "bilinear", "lanczos")}


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
    resample: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size <= _MAX_SIZE:
            raise ConfigError(
                f"image size must be a whole number of pixels from 1 to {_MAX_SIZE}, not {shown(self.size)}"
            )
        for field, allowed in (("mode", ("pad", "crop", "squash")), ("resample", tuple(_RESAMPLING))):
            value = getattr(self, field)
            if value not in allowed:
                raise ConfigError(f"image {field} must be one of {', '.join(allowed)}, not {shown(value)}")
        for field in ("mean", "std", "background"):
            value = getattr(self, field)
            if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(is_finite(v) for v in value):
                raise ConfigError(f"image {field} must be three finite numbers, not {shown(value)}")
            object.__setattr__(self, field, tuple(value))
        if min(self.std) <= 0:
            raise ConfigError(f"image std must be above 0 in every channel, not {shown(self.std)}")
        if not all(type(v) is int and 0 <= v <= 255 for v in self.background):
            raise ConfigError(
                f"image background must be three whole numbers from 0 to 255, not {shown(self.background)}"
            )

    def apply(self, image: Image.Image) -> Image.Image:
        """The geometry alone: the RGB image of ``size`` x ``size`` pixels that the tower sees, before normalization.

        Any Pillow image is taken and is first made upright RGB as :func:`load_image` does; it is not changed.

        Raises:
            ImageError: the image is zero-sized or does not decode.
        """
        check_size(image.size, MAX_PIXELS, "the image")
        with refuse_damage("the image"):
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
        pixels = np.asarray(self.apply(image))
        planes = np.empty((3, *pixels.shape[:2]), np.float32)
        for channel, (scale, shift) in enumerate(self._affine):  # plane by plane : a tenth of one expression over all
            np.multiply(pixels[..., channel], scale, out=planes[channel], dtype=np.float32)
            planes[channel] += shift
        return planes

    @cached_property
    def _affine(self) -> list[tuple[np.float32, np.float32]]:
        """What each channel is multiplied by, and what is added then."""
        return [
            (np.float32(1 / (255 * std)), np.float32(-mean / std))
            for mean, std in zip(self.mean, self.std, strict=True)
        ]

    def batch(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Transform N images (also none) to float32 ``[N, 3, size, size]``, C-contiguous.

        Raises:
            ImageError: an image is zero-sized or does not decode.
        """
        out = np.empty((len(images), 3, self.size, self.size), dtype=np.float32)
        for i, image in enumerate(images):
            out[i] = self(image)
        return out


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

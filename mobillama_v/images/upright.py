"""Turning a Pillow image of any mode and orientation into upright 8-bit RGB."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from PIL import ExifTags, Image

_LOG = logging.getLogger(__name__)
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PIECE = 1 << 20  # pixels
_quiet_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # else a process that is forked meanwhile would find it locked for ever
    os.register_at_fork(
        before=_quiet_lock.acquire, after_in_parent=_quiet_lock.release, after_in_child=_quiet_lock.release
    )


def upright_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """The same image, upright, 8-bit RGB and without metadata; ``image`` itself where nothing is to be done.

    ``image`` is not changed. What was chosen for it is logged, by its ``name``. Raises what Pillow raises on damaged
    data.
    """
    # Only TIFF warns while loading (of damaged tags); the lock would keep threads from decoding side by side.
    with quiet() if image.format == "TIFF" else nullcontext():
        image.load()
    # After load(), since Pillow turns a TIFF itself while loading it and then drops the tag.
    turn = _TURNS.get(_orientation(image))
    gray = image.mode.startswith("I") or image.mode == "F"
    rgb = Image.fromarray(_gray_to_8_bits(image, name)) if gray else image
    if rgb.mode in ("P", "PA") and not (rgb.palette and rgb.palette.palette):
        raise ValueError("its palette is missing")
    if rgb.mode == "La":
        rgb = rgb.convert("LA")
    if rgb.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in rgb.info:
        layer = rgb if rgb.mode == "RGBA" else rgb.convert("RGBA")
        rgb = Image.new("RGB", layer.size, _background(layer, name))
        rgb.paste(layer, mask=layer)
    elif rgb.mode != "RGB":
        rgb = rgb.convert("RGB")
    if turn is not None:
        rgb = rgb.transpose(turn)
    if rgb is image and (image.info or type(image) is not Image.Image):
        rgb = image.copy()
    if rgb is not image:
        rgb.info = {}  # the orientation must not be applied a second time by whoever gets this image
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        with quiet():
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata raises anything, and the picture is good without it
        return 1


def _background(layer: Image.Image, name: str) -> tuple[int, int, int]:
    """The color behind an RGBA image: white, or black where white would hide what is drawn."""
    alpha = layer.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return _WHITE
    lightness = layer.convert("L").histogram(mask=alpha.point([0] * 128 + [255] * 128))
    if sum(lightness[224:]) <= 0.75 * sum(lightness):
        return _WHITE
    _LOG.info("%s is nearly white on a transparent ground: it is shown on black", name)
    return _BLACK


def _gray_to_8_bits(image: Image.Image, name: str) -> np.ndarray:
    values = np.asarray(image).ravel()
    gray = np.empty(values.shape, np.uint8)
    # In pieces: the float64 steps below would take gigabytes for a large image at once.
    count = values.size // _PIECE + 1
    pieces = list(zip(np.array_split(values, count), np.array_split(gray, count), strict=True))
    low, high = _finite_range([source for source, _ in pieces])
    # Pillow gives a 16-bit PGM (and, before 11, a 16-bit PNG) the 32-bit mode "I".
    sixteen = image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM"))
    if sixteen and high >= 32768:
        for source, out in pieces:
            out[:] = np.clip(source, 0, 65535) >> 8
        return gray.reshape(image.height, image.width)
    scales = () if sixteen else (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    fitting = [scale for scale in scales if low >= 0 and high <= scale]
    # No usual range holds these values (elevations, temperatures, 12 bits in 16): the darkest becomes black, the
    # lightest white.
    start, span = (0.0, fitting[0]) if fitting else (low, high - low or 1.0)
    if not fitting:
        _LOG.info("%s has gray values from %g to %g: they are shown from black to white", name, low, high)
    for source, out in pieces:
        with np.errstate(invalid="ignore"):  # some NaN patterns warn when they are cast
            scaled = (source.astype(np.float64) - start) / span
        out[:] = np.rint(np.clip(np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0), 0, 1) * 255)
    return gray.reshape(image.height, image.width)


def _finite_range(pieces: list[np.ndarray]) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for piece in pieces:
        finite = piece[np.isfinite(piece)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's warnings (large image, damaged metadata) from being printed."""
    # catch_warnings swaps process-wide state, which threads would otherwise restore in the wrong order.
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""Small pictures and files of pictures for tests."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mobillama_v.errors import ImageError
from mobillama_v.images import load_image

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> list:
    """Row by row: a tuple for each pixel of a color image, a number for each of a grey one."""
    values = np.asarray(image)
    return [tuple(v) for v in values.reshape(-1, 3).tolist()] if values.ndim == 3 else values.ravel().tolist()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def refusal(source, **options) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert "\n" not in message and message.count(": ") >= 1
    return message


# Where the red, green, blue and white corners of the upright picture lie in the stored one, worked by hand from the
# EXIF table ("row 0 is ..., column 0 is ..."): top-left, top-right, bottom-left, bottom-right.
STORED = {1: "RGBW", 2: "GRWB", 3: "WBGR", 4: "BWRG", 5: "RBGW", 6: "GWRB", 7: "WGBR", 8: "BRWG"}
COLORS = {"R": RED, "G": GREEN, "B": BLUE, "W": WHITE}


def oriented(orientation: int) -> tuple[Image.Image, Image.Exif]:
    corners = STORED[orientation]
    size = (96, 64) if orientation < 5 else (64, 96)
    image = Image.new("RGB", (2, 2))
    image.putdata([COLORS[c] for c in corners])
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image.resize(size, Image.Resampling.NEAREST), exif

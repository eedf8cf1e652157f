"""What a file is by its first bytes: pictures that are not read are named as what they are, with what to do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

HEAD = 1024
"""How many first bytes are looked at."""

#: Lower-case file suffixes of formats that are read; HEIC only with the extra ``heif``.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".heic", ".heif", ".hif"),
    *(".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".avif"),
)
#: Those of pictures that are not read.
UNREAD_SUFFIXES = (
    *(".svg", ".svgz", ".psd", ".psb", ".xcf", ".eps", ".ai", ".ico", ".icns", ".cur", ".tga", ".pcx", ".jxl", ".jxr"),
    *(".exr", ".hdr", ".dds", ".dcm", ".qoi", ".wmf", ".emf", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"),
    *(".raf", ".raw", ".pef", ".srw"),
)
_EXPORT = "export it as JPEG or PNG"
_RAW = f"a camera's RAW file: {_EXPORT} with the camera's program"
_HEIF = "a HEIC image: install the extra for it (pip install 'mobillama-v[heif]'), or export it as JPEG"
_UNREAD = (
    (0, b"8BPS", f"a Photoshop file: {_EXPORT}"),
    (0, b"gimp xcf", f"a GIMP file: {_EXPORT}"),
    (0, b"%!PS", f"a PostScript drawing: {_EXPORT}"),
    (0, b"%PDF", "a PDF document: export its pages as PNG"),
    (0, b"\xff\x0a", f"a JPEG XL image: {_EXPORT}"),
    (4, b"JXL ", f"a JPEG XL image: {_EXPORT}"),
    (0, b"\0\0\1\0", f"an icon (ICO): {_EXPORT}"),
    (0, b"icns", f"an icon (ICNS): {_EXPORT}"),
    (0, b"\x76\x2f\x31\x01", f"an OpenEXR image: {_EXPORT}"),
    (0, b"#?RADIANCE", f"a Radiance HDR image: {_EXPORT}"),
    (0, b"DDS ", f"a DirectDraw texture (DDS): {_EXPORT}"),
    (0, b"qoif", f"a QOI image: {_EXPORT}"),
    (128, b"DICM", f"a DICOM image: {_EXPORT}"),
    (8, b"CR\x02\0", _RAW),
    (4, b"ftypcrx ", _RAW),
    (0, b"IIU\0", _RAW),
    (0, b"IIRO", _RAW),
    (0, b"FUJIFILMCCD-RAW", _RAW),
    (0, b"version https://git-lfs", "only the pointer to a file that Git LFS keeps: run git lfs pull"),
    (0, b"PK\x03\x04", "a ZIP archive: unpack it first"),
    (0, b"\x1f\x8b", "compressed with gzip (an SVGZ drawing?): unpack it first"),
)
_READ = (
    *((0, b"\xff\xd8\xff"), (0, b"\x89PNG\r\n"), (0, b"GIF8"), (8, b"WEBP"), (0, b"II*\0"), (0, b"MM\0*")),
    *((4, b"ftypavif"), (4, b"ftyphei"), (4, b"ftypmif1"), (4, b"jP  "), (0, b"\xff\x4f\xff\x51")),
)


def unread_format(head: bytes) -> str | None:
    """What a file that begins with ``head`` is and what to do, or None where it may be one that is read."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start and start.startswith(b"<"):
        return f"an SVG drawing: {_EXPORT}"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page: download the picture itself"
    if is_heif(head) and importlib.util.find_spec("pillow_heif") is None:
        return _HEIF
    return next((what for at, magic, what in _UNREAD if head[at : at + len(magic)] == magic), None)


def is_heif(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a HEIC or HEIF image (and not an AVIF one)."""
    brands = head[8:40]
    return (
        head[4:8] == b"ftyp" and b"avif" not in brands and any(brand in brands for brand in (b"hei", b"hevc", b"mif1"))
    )


def raw_preview(tiff_subfile: object) -> str | None:
    """What a TIFF is whose first picture says that it is a small preview (tag 254), as in DNG and NEF files."""
    return _RAW if isinstance(tiff_subfile, int) and tiff_subfile & 1 else None


def looks_like_picture(path: Path) -> bool:
    """Whether the suffix of a file or, where that says nothing, its first bytes are those of a picture."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or suffix in UNREAD_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False
    return any(head[at : at + len(magic)] == magic for at, magic in _READ)

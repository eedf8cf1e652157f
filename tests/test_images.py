"""Reading images of every kind, refusing bad ones in one sentence, and the geometry of the transform."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from mobillama_v import images
from mobillama_v.errors import ConfigError, ImageError
from mobillama_v.images import ImageTransform, find_images, load_image

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> list:
    """Row by row: a tuple for each pixel of a colour image, a number for each of a grey one."""
    values = np.asarray(image)
    return [tuple(v) for v in values.reshape(-1, 3).tolist()] if values.ndim == 3 else values.ravel().tolist()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def refusal(source, **options) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert "\n" not in message and message.count(": ") >= 1
    return message


# --- formats and modes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG", "JPEG2000", "AVIF", "MPO"])
def test_every_format_from_path_bytes_and_stream(format, tmp_path):
    if format in {"WEBP", "JPEG2000", "AVIF"} and not features.check(
        {"JPEG2000": "jpg_2000"}.get(format, format.lower())
    ):
        pytest.skip(f"this Pillow has no {format}")
    flat = Image.new("RGB", (40, 24), (200, 40, 90))
    data = encoded(flat, format)
    path = tmp_path / "im.bin"
    path.write_bytes(data)
    stream = io.BytesIO(data)
    for source in (path, str(path), data, stream):
        got = load_image(source)
        assert (got.mode, got.size, type(got), got.info) == ("RGB", (40, 24), Image.Image, {})
        assert np.abs(np.asarray(got, int) - (200, 40, 90)).max() <= 6
    assert not stream.closed


def test_unseekable_stream():
    read, write = os.pipe()
    os.write(write, encoded(Image.new("RGB", (3, 2), RED), "PNG"))
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        assert load_image(stream).size == (3, 2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_path_of_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(encoded(Image.new("RGB", (3, 2), RED), "PNG"),))
    writer.start()
    assert load_image(path).size == (3, 2)
    writer.join()


def test_pillow_image_is_copied_not_changed():
    source = noise()
    got = load_image(source)
    got.putpixel((0, 0), (1, 2, 3))
    assert source.getpixel((0, 0)) != (1, 2, 3)
    lazy = Image.open(io.BytesIO(encoded(source, "PNG")))
    lazy.info["mine"] = 1
    assert load_image(lazy).info == {} and lazy.info["mine"] == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_alpha_is_composited_on_white(mode):
    grey = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    grey.putpixel((1, 0), (0, 0, 0, 255))
    image = grey.convert({"La": "LA", "PA": "P"}.get(mode, mode))
    if mode == "PA":
        image = Image.new("PA", (2, 1))
        image.putpalette([0, 0, 0] * 256)
        image.putalpha(grey.getchannel("A"))
    image = image if image.mode == mode else image.convert(mode)
    assert pixels(load_image(image)) == [WHITE, BLACK]


def test_half_transparent_is_half_way_to_white():
    (pixel,) = pixels(load_image(Image.new("RGBA", (1, 1), (0, 100, 255, 51))))
    assert pixel == (204, 224, 255)


def test_palette_with_and_without_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    assert pixels(load_image(encoded(image, "PNG"))) == [RED, GREEN, BLUE]
    assert pixels(load_image(encoded(image, "PNG", transparency=1))) == [RED, WHITE, BLUE]
    several = encoded(image, "PNG", transparency=bytes([0, 255, 0]))
    assert pixels(load_image(several)) == [WHITE, GREEN, WHITE]
    assert pixels(load_image(encoded(image, "GIF", transparency=2))) == [RED, GREEN, WHITE]


def test_colour_key_transparency():
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    assert pixels(load_image(encoded(image, "PNG", transparency=GREEN))) == [RED, WHITE]
    grey = Image.frombytes("L", (2, 1), bytes([7, 9]))
    assert pixels(load_image(encoded(grey, "PNG", transparency=7))) == [WHITE, (9, 9, 9)]


def test_cmyk_grey_one_bit_and_ycbcr():
    assert load_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")).getpixel((4, 4)) == RED
    jpeg = load_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((4, 4))
    assert np.abs(np.subtract(jpeg, RED)).max() <= 3
    assert load_image(encoded(Image.new("L", (2, 2), 77), "PNG")).getpixel((0, 0)) == (77, 77, 77)
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert pixels(load_image(encoded(bits, "PNG"))) == [BLACK, WHITE]
    assert load_image(Image.new("YCbCr", (1, 1), (255, 128, 128))).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_gradient(format):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    pgm = b"P5 4 1 65535\n" + values.astype(">u2").tobytes()
    got = load_image(pgm if format == "PPM" else encoded(Image.fromarray(values), format))
    assert pixels(got.getchannel("R")) == [0, 1, 128, 255]


def test_16_bit_dark_grey_stays_dark():
    values = np.array([[0, 100, 200]], dtype=np.uint16)
    assert max(pixels(load_image(encoded(Image.fromarray(values), "PNG")).getchannel("R"))) == 0


def test_16_bit_big_endian_and_rgb():
    big = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 65535, 32896))
    assert pixels(load_image(big).getchannel("G")) == [255, 128]
    rows = zlib.compress(b"\0" + struct.pack(">3H", 65535, 32896, 257))
    assert load_image(png(1, 1, 16, 2, chunk(b"IDAT", rows))).getpixel((0, 0)) == (255, 128, 1)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 128, 255], np.int32, [0, 128, 255]),
        ([0, 32896, 65535], np.int32, [0, 128, 255]),
        ([-100, 0, 100], np.int32, [0, 128, 255]),
        ([70000, 70000, 70000], np.int32, [0, 0, 0]),
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
        ([0.0, 128.0, 255.0], np.float32, [0, 128, 255]),
        ([-1.0, 0.0, 3.0], np.float32, [0, 64, 255]),
        ([np.nan, 0.5, np.inf], np.float32, [0, 128, 255]),
        ([np.nan, np.nan, np.nan], np.float32, [0, 0, 0]),
    ],
)
def test_32_bit_and_float_grey(values, dtype, expected):
    image = Image.fromarray(np.array([values], dtype=dtype))
    for source in (image, encoded(image, "TIFF")):
        assert pixels(load_image(source).getchannel("B")) == expected


def test_large_float_grey_is_scaled_as_a_whole_in_little_memory():
    side = 2500  # several pieces, and the ends of the range lie in different ones
    values = np.linspace(-50, 205, side * side, dtype=np.float32).reshape(side, side)
    image = Image.fromarray(values)
    tracemalloc.start()
    got = np.asarray(load_image(image).getchannel("R"), int)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.abs(got - (values + 50)).max() <= 0.51
    assert peak < 20 * side * side  # float64 copies of the whole would take 8 bytes a pixel each


def test_signalling_nan_is_black_and_warns_nobody():
    values = np.array([0x7FA00000, 0x3F800000], dtype=np.uint32).view(np.float32).reshape(1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(load_image(encoded(Image.fromarray(values), "TIFF")).getchannel("R")) == [0, 255]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_first_frame_of_many(format):
    if format == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert np.abs(np.subtract(load_image(data).getpixel((8, 8)), RED)).max() <= 3


def test_current_frame_of_an_open_pillow_image():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    with Image.open(io.BytesIO(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))) as image:
        image.seek(1)
        assert load_image(image).getpixel((0, 0)) == GREEN


def test_tiny_and_wide():
    assert load_image(encoded(Image.new("RGB", (1, 1), BLUE), "PNG")).getpixel((0, 0)) == BLUE
    assert load_image(encoded(Image.new("L", (20_000, 1), 9), "PNG")).size == (20_000, 1)


# --- orientation ---------------------------------------------------------------------------------------------------

# Where the red, green, blue and white corners of the upright picture lie in the stored one, worked by hand from the
# EXIF table ("row 0 is ..., column 0 is ..."): top-left, top-right, bottom-left, bottom-right.
STORED = {1: "RGBW", 2: "GRWB", 3: "WBGR", 4: "BWRG", 5: "RBGW", 6: "GWRB", 7: "WGBR", 8: "BRWG"}
COLOURS = {"R": RED, "G": GREEN, "B": BLUE, "W": WHITE}


def oriented(orientation: int) -> tuple[Image.Image, Image.Exif]:
    corners = STORED[orientation]
    size = (96, 64) if orientation < 5 else (64, 96)
    image = Image.new("RGB", (2, 2))
    image.putdata([COLOURS[c] for c in corners])
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image.resize(size, Image.Resampling.NEAREST), exif


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation, format):
    image, exif = oriented(orientation)
    options = {"quality": 95} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    data = encoded(image, format, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as opened:
        sources = [data, opened]
        for source in sources:
            got = load_image(source)
            for again in (got, load_image(got)):  # applied once, not twice
                assert again.size == (96, 64)
                corners = [again.getpixel(at) for at in ((8, 8), (88, 8), (8, 56), (88, 56))]
                assert np.abs(np.subtract(corners, [RED, GREEN, BLUE, WHITE])).max() <= 12


def test_orientation_of_palette_and_16_bit():
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putdata([0, 1])
    got = load_image(encoded(palette, "PNG", exif=exif))
    assert got.size == (1, 2) and pixels(got) == [RED, GREEN]
    deep = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
    assert load_image(encoded(deep, "PNG", exif=exif)).getpixel((0, 1)) == WHITE


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xaa" * 40,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",  # the orientation is a text
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",  # orientation 99
    ],
)
def test_broken_exif_does_not_refuse_a_good_image(exif):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("JPEG", "WEBP"):
            assert load_image(encoded(noise(), format, exif=exif)).size == (64, 48)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP", "JPEG2000"])
def test_broken_colour_profile_does_not_refuse_a_good_image(format):
    assert load_image(encoded(noise(), format, icc_profile=b"garbage" * 20)).size == (64, 48)


def test_compressed_colour_profile_bomb():
    profile = chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(50_000_000)))
    assert "too large" in refusal(png(1, 1, 8, 2, profile, chunk(b"IDAT", zlib.compress(bytes(4)))))
    torn = chunk(b"iCCP", b"icc\0\0garbage")
    assert load_image(png(1, 1, 8, 2, torn, chunk(b"IDAT", zlib.compress(bytes(4))))).getpixel((0, 0)) == BLACK


def test_damaged_tiff_tag_warns_nobody():
    data = bytearray(encoded(noise(), "TIFF", description="x" * 40))
    entry = data.index(struct.pack("<HHI", 270, 2, 41))
    data[entry + 4 : entry + 8] = struct.pack("<I", 10**6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert load_image(bytes(data)).size == (64, 48)
        except ImageError as error:  # Pillow before 13 gives the picture up
            assert "damaged" in str(error)


# --- refusals ------------------------------------------------------------------------------------------------------


def test_missing_directory_empty_and_text(tmp_path):
    missing = tmp_path / "no such.png"
    assert "no such.png" in refusal(missing) and "does not exist" in refusal(missing)
    assert "is a directory" in refusal(tmp_path)
    assert "does not exist" in refusal("")
    empty = tmp_path / "empty.jpg"
    empty.write_bytes(b"")
    assert "empty.jpg" in refusal(empty) and "empty (0 bytes)" in refusal(empty)
    text = tmp_path / "notes.jpg"
    text.write_text("this is not a picture\n" * 20)
    assert "notes.jpg" in refusal(text) and "not an image" in refusal(text)
    assert "cannot be read" in refusal(str(text) + "/inside.jpg")
    assert "cannot be read" in refusal("nul\0.png")
    assert "cannot be read" in refusal("x" * 5000)


def test_no_permission(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(noise(), "PNG"))

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)  # root may read anything, so a mode bit would not do
    assert "secret.png" in refusal(path) and "permissions" in refusal(path)


def test_name_is_used_for_bytes_and_streams():
    assert refusal(b"", name="standard input").startswith("standard input is empty")
    assert refusal(io.BytesIO(b"hello there"), name="standard input").startswith("standard input is not an image")
    assert refusal(b"hello").startswith("the image is not")


def test_stream_that_fails():
    class Broken(io.RawIOBase):
        def read(self, size=-1):
            raise OSError("connection lost")

    assert "connection lost" in refusal(Broken(), name="upload")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
def test_truncated(format, part, tmp_path):
    data = encoded(noise(200, 150), format)
    path = tmp_path / f"cut.{format.lower()}"
    path.write_bytes(data[: int(len(data) * part)])
    assert f"cut.{format.lower()}" in refusal(path)


def test_truncated_jpeg_with_target():
    data = encoded(noise(800, 600), "JPEG")
    assert "damaged" in refusal(data[: len(data) // 2], target=100)


def test_corrupt_data_and_zero_sides():
    good = bytearray(encoded(noise(200, 150), "PNG"))
    good[len(good) // 2] ^= 0xFF
    refusal(bytes(good))
    refusal(png(0, 5, 8, 2, chunk(b"IDAT", zlib.compress(b""))))
    assert "0 x 5 pixels" in refusal(Image.new("RGB", (0, 5)))


def test_corrupt_palettes():
    data = chunk(b"IDAT", zlib.compress(b"\0\0"))
    assert "palette" in refusal(png(1, 1, 8, 3, data))
    assert "palette" in refusal(png(1, 1, 8, 3, chunk(b"PLTE", b""), data))
    bad_checksum = bytearray(chunk(b"PLTE", bytes(RED)))
    bad_checksum[-1] ^= 0xFF
    refusal(png(1, 1, 8, 3, bytes(bad_checksum), data))


@pytest.mark.parametrize("side", [50_000, 16_000])
def test_bomb_is_refused_from_its_header(side, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, 8, 2, chunk(b"IDAT", zlib.compress(bytes(1000)))))
    load_image(noise())
    before = Image.MAX_IMAGE_PIXELS
    tracemalloc.start()
    start = time.perf_counter()
    message = refusal(path)
    elapsed = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "bomb.png" in message and "178,956,970" in message
    assert peak < 20e6 and elapsed < 2
    assert before == Image.MAX_IMAGE_PIXELS


def huge_webp() -> bytes:
    still = encoded(Image.new("RGB", (4, 4)), "WEBP", lossless=True)[12:]
    frame = bytes(6) + (3).to_bytes(3, "little") * 2 + bytes(4) + still
    body = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (65_000).to_bytes(3, "little") * 2
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


@pytest.mark.parametrize(
    ("format", "data"),
    [
        ("PPM", b"P6 50000 50000 255\n"),
        ("BMP", b"BM" + struct.pack("<IHHIIiiHHI", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0) + bytes(20)),
        ("GIF", b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6) + b"," + bytes(9) + b"\2\0;"),
        ("WEBP", None),
    ],
)
def test_bombs_of_other_formats(format, data):
    if format == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    assert "178,956,970" in refusal(data or huge_webp())


def test_animation_that_claims_billions_of_frames():
    frames = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    assert load_image(png(1, 1, 8, 2, frames, chunk(b"IDAT", zlib.compress(bytes(4))))).size == (1, 1)


def test_out_of_memory_is_one_sentence(monkeypatch):
    def exhausted(image):
        raise MemoryError

    monkeypatch.setattr(images, "upright_rgb", exhausted)
    assert "memory" in refusal(encoded(noise(), "PNG"), name="poster.png")


def test_max_pixels():
    data = encoded(noise(64, 48), "PNG")
    assert load_image(data, max_pixels=64 * 48).size == (64, 48)
    assert "64 x 48 pixels, more than the 3,071 allowed" in refusal(data, max_pixels=64 * 48 - 1)
    assert "3,071" in refusal(noise(64, 48), max_pixels=64 * 48 - 1)


def test_large_allowed_image_warns_nobody(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    data = encoded(noise(64, 48), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(data).size == (64, 48)


def test_formats_that_start_programs_are_not_tried():
    assert "not an image" in refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert set(images._installed_formats()) <= set(images.FORMATS)


def test_target_decodes_jpeg_smaller():
    data = encoded(noise(1600, 1000).resize((1600, 1000)), "JPEG")
    assert load_image(data).size == (1600, 1000)
    assert load_image(data, target=100).size == (200, 125)
    assert load_image(data, target=126).size == (400, 250)
    assert load_image(data, target=1001).size == (1600, 1000)
    assert load_image(encoded(noise(1600, 1000), "PNG"), target=100).size == (1600, 1000)
    with pytest.raises(ValueError, match="at least 1"):
        load_image(data, target=0)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_handle_is_left_open(tmp_path):
    good, bad = tmp_path / "good.tif", tmp_path / "bad.png"
    frames = [noise(seed=i) for i in range(3)]
    frames[0].save(good, save_all=True, append_images=frames[1:], compression="tiff_lzw")
    bad.write_bytes(encoded(noise(), "PNG")[:2000])
    kept = []
    before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            kept.append(load_image(good))
            refusal(bad)
    assert len(os.listdir("/proc/self/fd")) == before


# --- folders -------------------------------------------------------------------------------------------------------


def test_find_images(tmp_path):
    for name in ("10.png", "2.PNG", "a.jpg", ".hidden.png", "notes.txt", "B.webp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in find_images(tmp_path)] == ["2.PNG", "10.png", "a.jpg", "B.webp"]
    with pytest.raises(ImageError, match="holds no image"):
        find_images(tmp_path / "folder.png")
    for bad in ("missing", "notes.txt"):
        with pytest.raises(ImageError, match="cannot be listed"):
            find_images(tmp_path / bad)


# --- transform -----------------------------------------------------------------------------------------------------


def test_pad_geometry():
    got = np.asarray(ImageTransform(8).apply(Image.new("RGB", (40, 20), RED)))
    background = (122, 116, 104)
    assert (got[:2] == background).all() and (got[2:6] == RED).all() and (got[6:] == background).all()
    normalised = ((np.array(background) / 255 - images.CLIP_MEAN) / images.CLIP_STD)[:, None, None]
    seen = ImageTransform(8)(Image.new("RGB", (40, 20), RED))
    np.testing.assert_allclose(seen[:, [0, 1, 6, 7]] - normalised, 0, atol=1e-6)
    got = np.asarray(ImageTransform(8, background=(1, 2, 3)).apply(Image.new("RGB", (10, 30), RED)))
    # 8 * 10 / 30 = 2.67 -> 3 columns, after (8 - 3) // 2 = 2 of background
    assert (got[:, :2] == (1, 2, 3)).all() and (got[:, 2:5] == RED).all() and (got[:, 5:] == (1, 2, 3)).all()


def test_pad_agrees_with_padding_first():
    """At 4:3 the padding is whole output pixels, so that only the seam may differ from LLaVA-1.5's order of steps."""
    image = noise(80, 60).resize((640, 480), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (640, 640), (122, 116, 104))
    square.paste(image, (0, 80))
    expected = np.asarray(square.resize((336, 336), Image.Resampling.BICUBIC), int)
    got = np.asarray(ImageTransform(336).apply(image), int)
    seam = [rows for edge in (42, 294) for rows in range(edge - 2, edge + 2)]
    np.testing.assert_array_equal(np.delete(got, seam, axis=0), np.delete(expected, seam, axis=0))


def test_crop_geometry():
    stripes = Image.new("RGB", (30, 10))
    for i, colour in enumerate((RED, GREEN, BLUE)):
        stripes.paste(colour, (10 * i, 0, 10 * i + 10, 10))
    assert (np.asarray(ImageTransform(10, mode="crop").apply(stripes)) == GREEN).all()
    got = np.asarray(ImageTransform(10, mode="crop").apply(stripes.rotate(90, expand=True)))
    assert (got == GREEN).all()


def test_squash_geometry():
    halves = Image.new("RGB", (400, 10), RED)
    halves.paste(BLUE, (200, 0, 400, 10))
    got = np.asarray(ImageTransform(10, mode="squash").apply(halves))
    assert (got[:, :4] == RED).all() and (got[:, 6:] == BLUE).all()


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (224, 224), (100, 37), (37, 100), (1000, 225), (225, 226)])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_crop_matches_resizing_all_and_cropping(size, resample):
    image, side = noise(*size), 224
    short = min(size)
    width, height = (int(side * s / short) for s in size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    whole = image.resize((width, height), getattr(Image.Resampling, resample.upper()))
    expected = whole.crop((left, top, left + side, top + side))
    got = ImageTransform(side, mode="crop", resample=resample).apply(image)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


def test_crop_of_a_panorama_keeps_its_centre():
    stripes = Image.new("RGB", (300, 10), RED)
    stripes.paste(GREEN, (145, 0, 155, 10))
    assert (np.asarray(ImageTransform(10, mode="crop").apply(stripes)) == GREEN).all()
    assert (np.asarray(ImageTransform(10, mode="crop").apply(stripes.rotate(90, expand=True))) == GREEN).all()


def test_normalisation_layout_and_batch():
    transform = ImageTransform(4, mode="squash")
    got = transform(Image.new("RGB", (9, 9), (255, 0, 51)))
    assert (got.shape, got.dtype, got.flags["C_CONTIGUOUS"]) == ((3, 4, 4), np.float32, True)
    expected = [(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258, (0.2 - 0.40821073) / 0.27577711]
    np.testing.assert_allclose(got[:, 2, 1], expected, rtol=1e-6)
    np.testing.assert_allclose(np.ptp(got, axis=(1, 2)), 0)
    pair = [noise(30, 20), noise(20, 30)]
    batch = transform.batch(pair)
    assert batch.shape == (2, 3, 4, 4) and batch.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(batch, np.stack([transform(image) for image in pair]))
    assert transform.batch([]).shape == (0, 3, 4, 4)


def test_transform_takes_any_mode_upright():
    image, exif = oriented(6)
    opened = Image.open(io.BytesIO(encoded(image, "PNG", exif=exif)))
    upright, _ = oriented(1)
    transform = ImageTransform(32)
    np.testing.assert_array_equal(transform(opened), transform(upright))
    clear = Image.new("RGBA", (5, 5), (0, 0, 0, 0))
    assert transform.apply(clear).getpixel((3, 3)) == WHITE
    with pytest.raises(ImageError, match="0 x 3"):
        transform(Image.new("RGB", (0, 3)))


def test_input_is_not_changed():
    image = noise()
    before = image.tobytes()
    for mode in ("pad", "crop", "squash"):
        out = ImageTransform(48, mode=mode).apply(image)
        out.paste(BLACK, (0, 0, 48, 48))
    assert image.tobytes() == before


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000)])
@pytest.mark.parametrize("mode", ["pad", "crop", "squash"])
def test_very_long_images(size, mode):
    start = time.perf_counter()
    got = ImageTransform(336, mode=mode)(Image.new("RGB", size, GREEN))
    assert got.shape == (3, 336, 336) and np.isfinite(got).all() and time.perf_counter() - start < 5
    assert (got[1] == got[1].max()).any()  # something of the image is seen


@settings(deadline=None, max_examples=80)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    size=st.integers(1, 64),
    mode=st.sampled_from(["pad", "crop", "squash"]),
    resample=st.sampled_from(["bicubic", "bilinear"]),
)
def test_any_size_gives_finite_values(width, height, size, mode, resample):
    colour = (10, 200, 90)
    transform = ImageTransform(size, mode=mode, resample=resample, background=colour)
    image = Image.new("RGB", (width, height), colour)
    got = transform(image)
    assert got.shape == (3, size, size) and got.dtype == np.float32 and np.isfinite(got).all()
    assert (np.asarray(transform.apply(image)) == colour).all()  # a flat image stays flat in every geometry


def test_configuration_is_checked():
    from_json = ImageTransform(8, mean=[0.5, 0.5, 0.5], std=[1, 1, 1], background=[0, 0, 0])
    assert from_json == ImageTransform(8, mean=(0.5, 0.5, 0.5), std=(1, 1, 1), background=(0, 0, 0))
    assert hash(from_json) and ImageTransform(8).mean == images.CLIP_MEAN and ImageTransform(8).std == images.CLIP_STD
    assert tuple(int(255 * m) for m in images.CLIP_MEAN) == ImageTransform(8).background
    for bad in (
        {"size": 0},
        {"size": -3},
        {"size": 8.0},
        {"size": True},
        {"size": 10**6},
        {"size": "8"},
        {"mode": "stretch"},
        {"mode": ["pad"]},
        {"resample": "lanczos"},
        {"mean": (0.5, 0.5)},
        {"mean": 0.5},
        {"mean": (0.5, 0.5, float("nan"))},
        {"mean": ("a", 0.5, 0.5)},
        {"std": (1.0, 0.0, 1.0)},
        {"std": (1.0, -1.0, 1.0)},
        {"background": (0, 0, 256)},
        {"background": (0, 0, -1)},
        {"background": (0.5, 0, 0)},
        {"background": "white"},
    ):
        with pytest.raises(ConfigError):
            ImageTransform(**{"size": 8, **bad})


def test_import_is_light():
    code = "import sys, mobillama_v.images; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0

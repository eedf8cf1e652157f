"""Images that are refused: each by one sentence, without allocating what it claims to be."""

from __future__ import annotations

import io
import os
import struct
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image, features

from mobillama_v.images import kinds, load_image, read
from pictures import RED, chunk, encoded, noise, png, refusal


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
    def exhausted(image, name):
        raise MemoryError

    monkeypatch.setattr(read, "upright_rgb", exhausted)
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
    assert "PostScript" in refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert set(read._formats(b"%!PS")) <= set(read.FORMATS)


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


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "a HEIC image: install the extra"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "a HEIC image: install the extra"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing: export"),
        (b"<!DOCTYPE html><html>", "a web page: download"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"II*\0\x10\0\0\0CR\x02\0", "RAW file"),
        (b"\0\0\0\x18ftypcrx ", "RAW file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript drawing"),
        (b"\xff\x0a\xfa", "a JPEG XL image"),
        (bytes(128) + b"DICM", "a DICOM image"),
        (b"version https://git-lfs.github.com/spec/v1", "run git lfs pull"),
    ],
)
def test_formats_that_are_not_read_are_named(head, what, tmp_path, monkeypatch):
    monkeypatch.setattr(kinds.importlib.util, "find_spec", lambda name: None)
    path = tmp_path / "IMG_1"
    path.write_bytes(head + bytes(20))
    assert what in refusal(path)


def test_the_preview_in_a_raw_file_is_not_taken_for_the_photo():
    import PIL.TiffImagePlugin as tiff

    info = tiff.ImageFileDirectory_v2()
    info[254] = 1
    assert "RAW file" in refusal(encoded(noise(), "TIFF", tiffinfo=info))


def test_heic_with_the_extra(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    path = tmp_path / "IMG_0001.HEIC"
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), RED)).save(path, quality=90)
    got = load_image(path)
    assert got.size == (64, 48) and max(abs(a - b) for a, b in zip(got.getpixel((30, 20)), RED, strict=True)) < 12
    assert "damaged" in refusal(path.read_bytes()[:300])

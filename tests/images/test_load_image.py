"""Reading images of every kind, refusing bad ones in one sentence, and the geometry of the transform."""

from __future__ import annotations

import base64
import io
import os
import struct
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import warnings
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, features

from mobillama_v.errors import ImageError
from mobillama_v.images import find_images, load_image
from pictures import BLACK, BLUE, GREEN, RED, WHITE, chunk, encoded, noise, oriented, pixels, png, refusal

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


@pytest.mark.parametrize("color", [WHITE, (250, 250, 235), (230, 255, 230)])
def test_what_is_nearly_white_on_transparent_is_shown_on_black(color, caplog):
    image = Image.new("RGBA", (10, 1), (*BLACK, 0))
    for x in range(5):
        image.putpixel((x, 0), (*color, 255))
    with caplog.at_level("INFO", "mobillama_v"):
        assert pixels(load_image(image)) == [color] * 5 + [BLACK] * 5
    assert "shown on black" in caplog.text
    image.putpixel((0, 0), (*BLUE, 255))
    image.putpixel((1, 0), (*BLUE, 255))  # enough to be seen on white
    assert pixels(load_image(image))[5:] == [WHITE] * 5
    assert pixels(load_image(Image.new("RGBA", (2, 1), (*WHITE, 0)))) == [WHITE] * 2


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


def test_color_key_transparency():
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


@pytest.mark.parametrize("values", [[0, 15, 30], [15, 24, 33], [291, 492, 694], [0, 2047, 4095], [0, 16383, 32767]])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_gray_that_leaves_16_bits_unused_is_scaled_by_its_range_and_said(values, format, caplog):
    array = np.array([values], dtype=np.uint16)
    pgm = b"P5 3 1 65535\n" + array.astype(">u2").tobytes()
    with caplog.at_level("INFO", "mobillama_v"):
        got = load_image(pgm if format == "PPM" else encoded(Image.fromarray(array), format), name="x-ray")
    assert pixels(got.getchannel("R")) == [0, round((values[1] - values[0]) / (values[2] - values[0]) * 255), 255]
    assert f"x-ray has gray values from {values[0]} to {values[2]}" in caplog.text


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


@pytest.mark.slow
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
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, GREEN, BLUE)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert np.abs(np.subtract(load_image(data).getpixel((8, 8)), RED)).max() <= 3


def test_current_frame_of_an_open_pillow_image():
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, GREEN)]
    with Image.open(io.BytesIO(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))) as image:
        image.seek(1)
        assert load_image(image).getpixel((0, 0)) == GREEN


def test_tiny_and_wide():
    assert load_image(encoded(Image.new("RGB", (1, 1), BLUE), "PNG")).getpixel((0, 0)) == BLUE
    assert load_image(encoded(Image.new("L", (20_000, 1), 9), "PNG")).size == (20_000, 1)


# --- orientation ---------------------------------------------------------------------------------------------------


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
def test_broken_color_profile_does_not_refuse_a_good_image(format):
    assert load_image(encoded(noise(), format, icc_profile=b"garbage" * 20)).size == (64, 48)


def test_compressed_color_profile_bomb():
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


def test_a_folder_loses_no_picture_in_silence(tmp_path):
    photo = encoded(noise(), "JPEG")
    for name, data in (
        ("IMG_1.HEIC", b"x"),
        ("b.svg", b"<svg/>"),
        ("IMG_2", photo),
        ("c.jpg~", photo),
        ("d.pdf", b"x"),
    ):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert [p.name for p in find_images(tmp_path)] == ["b.svg", "c.jpg~", "gone.jpg", "IMG_1.HEIC", "IMG_2"]


def test_import_is_light():
    code = "import sys, mobillama_v.images; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.parametrize("form", ["plain", "lines", "url-safe", "percent", "unpadded", "no type", "upper", "escaped"])
def test_data_urls_as_clients_write_them(form: str) -> None:
    data = io.BytesIO()
    Image.effect_noise((9, 7), 90).convert("RGB").save(data, "PNG")
    text = base64.b64encode(data.getvalue()).decode()
    url = {
        "plain": f"data:image/png;base64,{text}",
        "lines": "data:image/png;base64," + "\r\n".join(textwrap.wrap(text, 76)),
        "url-safe": "data:image/png;base64," + text.replace("+", "-").replace("/", "_"),
        "percent": "data:image/png;base64," + quote(text, safe=""),
        "unpadded": "data:image/png;base64," + text.rstrip("="),
        "no type": f"data:;base64,{text}",
        "upper": f"DATA:image/PNG;BASE64,{text}",
        "escaped": "data:image/png," + quote(data.getvalue()),
    }[form]
    assert load_image(url).tobytes() == load_image(data.getvalue()).tobytes()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64,!!", "base64 text"),
        ("data:x", "no comma"),
        ("data:,x", "the data URL is not an"),
    ],
)
def test_bad_data_urls_are_refused(url: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(url)

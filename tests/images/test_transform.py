"""Images to model inputs: pad, crop, squash, scale, normalize."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mobillama_v.errors import ConfigError, ImageError
from mobillama_v.images import ImageTransform
from mobillama_v.images.transform import CLIP_MEAN, CLIP_STD
from pictures import BLACK, BLUE, GREEN, RED, WHITE, encoded, noise, oriented


def test_pad_geometry():
    got = np.asarray(ImageTransform(8).apply(Image.new("RGB", (40, 20), RED)))
    background = (122, 116, 104)
    assert (got[:2] == background).all() and (got[2:6] == RED).all() and (got[6:] == background).all()
    normalized = ((np.array(background) / 255 - CLIP_MEAN) / CLIP_STD)[:, None, None]
    seen = ImageTransform(8)(Image.new("RGB", (40, 20), RED))
    np.testing.assert_allclose(seen[:, [0, 1, 6, 7]] - normalized, 0, atol=1e-6)
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
    for i, color in enumerate((RED, GREEN, BLUE)):
        stripes.paste(color, (10 * i, 0, 10 * i + 10, 10))
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


def test_crop_of_a_panorama_keeps_its_center():
    stripes = Image.new("RGB", (300, 10), RED)
    stripes.paste(GREEN, (145, 0, 155, 10))
    assert (np.asarray(ImageTransform(10, mode="crop").apply(stripes)) == GREEN).all()
    assert (np.asarray(ImageTransform(10, mode="crop").apply(stripes.rotate(90, expand=True))) == GREEN).all()


def test_normalization_layout_and_batch():
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
    color = (10, 200, 90)
    transform = ImageTransform(size, mode=mode, resample=resample, background=color)
    image = Image.new("RGB", (width, height), color)
    got = transform(image)
    assert got.shape == (3, size, size) and got.dtype == np.float32 and np.isfinite(got).all()
    assert (np.asarray(transform.apply(image)) == color).all()  # a flat image stays flat in every geometry


def test_configuration_is_checked():
    from_json = ImageTransform(8, mean=[0.5, 0.5, 0.5], std=[1, 1, 1], background=[0, 0, 0])
    assert from_json == ImageTransform(8, mean=(0.5, 0.5, 0.5), std=(1, 1, 1), background=(0, 0, 0))
    assert hash(from_json) and ImageTransform(8).mean == CLIP_MEAN and ImageTransform(8).std == CLIP_STD
    assert tuple(int(255 * m) for m in CLIP_MEAN) == ImageTransform(8).background
    for bad in (
        {"size": 0},
        {"size": -3},
        {"size": 8.0},
        {"size": True},
        {"size": 10**6},
        {"size": "8"},
        {"mode": "stretch"},
        {"mode": ["pad"]},
        {"resample": "nearest"},
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


def test_normalizing_is_the_formula_to_half_a_millionth() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    transform = ImageTransform(size=16)
    expected = (levels / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(transform(Image.fromarray(levels)).transpose(1, 2, 0), expected, rtol=0, atol=5e-7)

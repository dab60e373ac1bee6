"""Every format and orientation comes out upright at the asked size, and the mask with it."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from segtrain.errors import DataError
from segtrain.pipeline.decode import decode_image, decode_mask, decode_picture, decode_window


def encode(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def scene(height: int, width: int) -> np.ndarray:
    """A smooth picture without any symmetry, uint8 (height, width, 3)."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (255 * np.stack([x, y, (x * x + y) / 2], axis=-1)).astype(np.uint8)


def nothing(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "JPEG"])
def test_each_format_gives_the_same_picture(make_row, kind: str) -> None:
    pixels = scene(40, 60)
    image = decode_image(make_row(encode(pixels, kind), nothing(40, 60)), 40, 60)
    assert image.dtype == np.uint8
    assert image.shape == (40, 60, 3)
    tolerance = {"PNG": 0, "BMP": 0, "JPEG": 16, "GIF": 40}[kind]  # GIF has 256 colours
    assert np.abs(image.astype(int) - pixels).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG"])
def test_grey_pictures_become_three_equal_channels(make_row, kind: str) -> None:
    grey = scene(32, 48)[..., 0]
    image = decode_image(make_row(encode(grey, kind), nothing(32, 48)), 32, 48)
    assert (image == image[..., :1]).all()
    assert np.abs(image[..., 0].astype(int) - grey).max() <= (8 if kind == "JPEG" else 0)


def test_an_alpha_channel_is_dropped(make_row) -> None:
    pixels = scene(32, 48)
    with_alpha = np.concatenate([pixels, np.full((32, 48, 1), 255, np.uint8)], axis=-1)
    image = decode_image(make_row(encode(with_alpha, "PNG"), nothing(32, 48)), 32, 48)
    np.testing.assert_array_equal(image, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_undone_as_pillow_undoes_it(make_row, kind: str, orientation: int) -> None:
    stored = Image.fromarray(scene(64, 96))
    stored.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(stored))
    height, width = upright.shape[:2]
    row = make_row(encode(np.asarray(stored), kind), nothing(height, width), orientation=orientation)
    for scale in (1, 2, 3):
        expected = np.asarray(Image.fromarray(upright).resize((width // scale, height // scale), Image.Resampling.BOX))
        image = decode_image(row, height // scale, width // scale)
        # Pillow takes whole pixels where the scale is no whole number, which is up to 2 off the exact area.
        assert np.abs(image.astype(int) - expected).max() <= (12 if kind == "JPEG" else 2)


@pytest.mark.parametrize(("height", "width"), [(96, 128), (159, 239), (160, 240), (161, 241), (320, 480), (640, 961)])
def test_a_jpeg_decoded_at_a_smaller_scale_looks_like_the_whole_one_resized(make_row, height: int, width: int) -> None:
    pixels = scene(1280, 1918)
    row = make_row(encode(pixels, "JPEG", quality=95), nothing(1280, 1918))
    image = decode_image(row, height, width)
    expected = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
    assert image.shape == (height, width, 3)
    assert np.abs(image.astype(int) - expected).max() <= 6


def test_small_pictures_are_enlarged_smoothly(make_row) -> None:
    pixels = scene(12, 16)
    image = decode_image(make_row(encode(pixels, "PNG"), nothing(12, 16)), 48, 64)
    expected = np.asarray(Image.fromarray(pixels).resize((64, 48), Image.Resampling.BILINEAR))
    assert np.abs(image.astype(int) - expected).max() <= 2


def test_a_mask_pixel_is_object_where_half_of_its_area_is(make_row) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[0:2, 0:1] = 1  # half of the first block of 2 x 2
    mask[2, 2] = 1  # a quarter of another
    mask[4:8, 4:8] = 1
    small = decode_mask(make_row(b"", mask), 4, 4)
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(small, [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])


@settings(max_examples=40)
@given(
    stored=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    asked=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
)
def test_a_mask_that_shrinks_is_the_threshold_of_exact_areas(make_row, stored, asked, seed: int) -> None:
    height, width = (min(pair) for pair in zip(stored, asked, strict=True))
    mask = (np.random.default_rng(seed).random(stored) < 0.5).astype(np.uint8)
    areas = overlaps(stored[0], height) @ mask @ overlaps(stored[1], width).T
    clear = np.abs(areas - 0.5) > 1e-5
    np.testing.assert_array_equal(decode_mask(make_row(b"", mask), height, width)[clear], areas[clear] >= 0.5)


def overlaps(old: int, new: int) -> np.ndarray:
    """(new, old): the part of each new pixel that each old one covers, along one axis."""
    starts, stops = np.arange(new)[:, None] * old / new, np.arange(1, new + 1)[:, None] * old / new
    pixels = np.arange(old)
    return np.clip(np.minimum(stops, pixels + 1) - np.maximum(starts, pixels), 0, None) * new / old


def test_a_mask_at_its_own_size_is_exact(make_row) -> None:
    mask = (np.random.default_rng(0).random((37, 61)) < 0.5).astype(np.uint8)
    np.testing.assert_array_equal(decode_mask(make_row(b"", mask), 37, 61), mask)


def test_image_and_mask_fit_each_other(make_row) -> None:
    mask = np.zeros((80, 120), np.uint8)
    mask[20:60, 30:100] = 1
    pixels = np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1)
    picture = decode_picture(make_row(encode(pixels, "PNG"), mask), (24, 36))
    assert picture.image.shape == (24, 36, 3)
    np.testing.assert_array_equal(picture.image[..., 0] >= 128, picture.mask == 1)


@settings(max_examples=40)
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG"]), orientation=st.sampled_from([1, 3, 6]))
def test_a_window_is_the_same_part_of_the_whole_picture(make_row, data, kind: str, orientation: int) -> None:
    stored = scene(45, 67)
    upright = (67, 45) if orientation == 6 else (45, 67)
    mask = (np.random.default_rng(1).random(upright) < 0.5).astype(np.uint8)
    row = make_row(encode(stored, kind), mask, orientation=orientation)
    height, width = (data.draw(st.integers(1, side)) for side in upright)
    top, left = (data.draw(st.integers(0, s - n)) for s, n in zip(upright, (height, width), strict=True))
    window = decode_window(row, top, left, height, width)
    whole = decode_picture(row, upright)
    part = slice(top, top + height), slice(left, left + width)
    np.testing.assert_array_equal(window.mask, whole.mask[part])
    # Of a JPEG, libjpeg widens the halved colour of the outermost columns without their neighbours outside.
    np.testing.assert_array_equal(window.image[:, 1:-1], whole.image[part][:, 1:-1])
    difference = np.abs(window.image.astype(int) - whole.image[part])
    assert difference.max() <= (6 if kind == "JPEG" and orientation == 1 else 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_that_cannot_be_decoded_is_named(make_row, kind: str) -> None:
    image = encode(scene(64, 64), kind)
    with pytest.raises(DataError, match="id car7: the image cannot be decoded"):
        decode_image(make_row(image[: len(image) // 2], nothing(64, 64), name="car7"), 32, 32)

"""Files of a picture: masks of 1 bit a pixel that any reader gives back, overlays, probabilities."""

import io

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segtrain.prediction.outputs import Outputs, mask_png, overlay_jpeg, probability_png


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_a_mask_comes_back_from_its_png_of_one_bit_a_pixel(mask: np.ndarray) -> None:
    image = opened(mask_png(mask))
    assert (image.mode, image.size) == ("1", mask.shape[::-1])
    np.testing.assert_array_equal(np.asarray(image), mask)


def test_a_masks_png_is_sound_to_the_last_chunk() -> None:
    mask = np.zeros((1280, 1918), np.uint8)
    mask[300:900, 500:1500] = 255
    data = mask_png(mask)
    opened(data).verify()
    assert data[24:26] == b"\x01\x00", "bit depth 1, grey"
    assert len(data) < 8000


def test_probabilities_are_kept_to_half_a_level() -> None:
    probability = np.linspace(0.0, 1.0, 1000, dtype=np.float32).reshape(20, 50)
    image = opened(probability_png(probability))
    assert image.mode == "L"
    np.testing.assert_allclose(np.asarray(image) / 255.0, probability, rtol=0, atol=0.5 / 255 + 1e-6)


def test_an_overlay_shows_the_picture_where_there_is_no_object() -> None:
    picture = np.full((40, 60, 3), 120, np.uint8)
    mask = np.zeros((40, 60), np.bool_)
    assert np.abs(np.asarray(opened(overlay_jpeg(picture, mask))).astype(int) - 120).max() <= 2
    mask[10:30, 20:40] = True
    drawn = np.asarray(opened(overlay_jpeg(picture, mask))).astype(int)
    assert drawn.shape == picture.shape
    assert drawn[20, 30, 2] > drawn[20, 30, 0] + 20, "the object is tinted blue"
    assert np.abs(drawn[:4, :4] - 120).max() <= 4


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ({}, ["masks/a.png"]),
        ({"probabilities": True}, ["masks/a.png", "probabilities/a.png"]),
        ({"overlays": True, "probabilities": True}, ["masks/a.png", "probabilities/a.png", "overlays/a.jpg"]),
    ],
)
def test_only_what_was_asked_for_is_written(asked: dict[str, bool], written: list[str]) -> None:
    probability = np.full((4, 6), 0.7, np.float32)
    files = Outputs("s3://bucket/dest", **asked).files(
        "a", probability >= 0.5, probability, np.zeros((4, 6, 3), np.uint8)
    )
    assert [url for url, _ in files] == [f"s3://bucket/dest/{name}" for name in written]

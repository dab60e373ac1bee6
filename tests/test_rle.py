"""Run lengths against hand-computed cases, Kaggle's first picture and random masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segtrain import rle


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        ([1, 0, 0, 1], "1 1 4 1"),
        ([1, 1, 1, 1], "1 4"),
        ([1, 1, 0, 0], "1 2"),
        ([0, 0, 0, 0], ""),
        ([0, 1, 1, 0], "2 2"),
    ],
)
def test_corners_are_right(pixels: list[int], text: str) -> None:
    mask = np.array(pixels, np.uint8).reshape(2, 2)
    assert rle.encode(mask) == text
    np.testing.assert_array_equal(rle.decode(text, 2, 2), mask)


@given(arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_any_mask_comes_back(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(rle.decode(rle.encode(mask), *mask.shape), mask)


def test_pixels_are_counted_row_by_row() -> None:
    mask = rle.decode("879386 40 881253 141 883140 205", 1280, 1918)  # starts of Kaggle's 00087a6bd4dc_01
    rows, columns = np.nonzero(mask)
    assert rows.min() == 458
    assert rows.max() == 460
    assert abs(columns[rows == 458].mean() - 960) < 2
    assert mask.sum() == 40 + 141 + 205


def test_a_mask_of_any_object_value_is_encoded_alike() -> None:
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    assert rle.encode(mask) == rle.encode(mask > 0) == "2 2"


@given(arrays(np.bool_, st.integers(0, 40)))
def test_runs_begin_and_end_where_neighbours_differ(pixels: np.ndarray) -> None:
    edges = [at for at in range(len(pixels) + 1) if (at < len(pixels) and pixels[at]) != (at > 0 and pixels[at - 1])]
    expected = [f"{start + 1} {end - start}" for start, end in zip(edges[::2], edges[1::2], strict=True)]
    assert rle.encode(pixels) == " ".join(expected)


def test_a_view_is_read_row_by_row_too() -> None:
    mask = np.array([[1, 0, 1], [1, 0, 0]], np.uint8)
    assert rle.encode(mask.T) == rle.encode(np.ascontiguousarray(mask.T)) == "1 2 5 1"
    assert rle.encode(mask[:, ::-1]) == "1 1 3 1 6 1"


def test_runs_that_touch_are_one_run() -> None:
    np.testing.assert_array_equal(rle.decode("1 2 3 1", 1, 4), [[1, 1, 1, 0]])


@pytest.mark.parametrize(
    ("text", "reason"),
    [("1", "pairs"), ("1 x", "whole numbers"), ("1 5", "end at pixel 5"), ("0 1", "below 1"), ("3 1 1 1", "overlap"),
     ("1 0", "below 1"), ("1 2 2 1", "overlap"), (f"1 {2**63 - 1}", "hold 9223372036854775807; the picture has 4"),
     (f"{2**62} {2**62}", "hold 4611686018427387904"), (f"1 {2**63}", "too large"), (f"1 {2**62 - 1}", "end at pixel")],
)  # fmt: skip
def test_a_malformed_text_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rle.decode(text, 2, 2)

"""Dice and IoU by hand, by scikit-learn, and as properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score, jaccard_score

from segtrain.metrics import (
    THRESHOLDS,
    best_threshold,
    boundary,
    dice,
    hard_counts,
    iou,
    soft_sums,
    soft_sums_and_counts,
)

PAIRS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape))
)


def test_half_of_the_object_found():
    rows = hard_counts(np.array([[1, 1, 1, 1]], np.uint8), np.array([[1, 1, 0, 0]], np.uint8))
    np.testing.assert_array_equal(rows, [2, 2, 4])
    assert rows.dtype == np.int64
    assert dice(rows) == 2 / 3
    assert iou(rows) == 0.5


def test_both_empty_is_perfect_and_one_empty_is_nothing():
    empty, full = np.zeros((2, 2)), np.ones((2, 2))
    for rows, score in [((empty, empty), 1.0), ((empty, full), 0.0), ((full, empty), 0.0), ((full, full), 1.0)]:
        for sums in (hard_counts, soft_sums):
            assert dice(sums(*rows)) == iou(sums(*rows)) == score


@settings(max_examples=60)
@given(PAIRS)
def test_scores_are_scikit_learns(pair):
    truth, prediction = pair
    rows = hard_counts(truth, prediction)
    if truth.any() or prediction.any():
        assert dice(rows) == pytest.approx(f1_score(truth.ravel(), prediction.ravel()))
        assert iou(rows) == pytest.approx(jaccard_score(truth.ravel(), prediction.ravel()))
    assert dice(rows) == pytest.approx(2 * iou(rows) / (1 + iou(rows)))
    np.testing.assert_array_equal(soft_sums(truth, prediction.astype(np.float32)), rows)


def test_soft_sums_by_hand():
    np.testing.assert_allclose(soft_sums(np.array([[1, 0, 1]]), np.array([[0.5, 0.25, 1.0]])), [1.5, 1.75, 2.0])


def test_rows_score_one_by_one_and_their_sum_over_the_set():
    rows = np.array([[2, 2, 4], [0, 0, 0], [1, 3, 1]])
    np.testing.assert_allclose(dice(rows), [2 / 3, 1.0, 0.5])
    np.testing.assert_allclose(iou(rows), [0.5, 1.0, 1 / 3])
    assert dice(rows.sum(0)) == 2 * 3 / (5 + 5)


def test_a_thousand_full_pictures_add_up_exactly():
    truth = np.ones((1280, 1918), bool)
    prediction = truth.copy()
    prediction[0, 0] = False
    row = hard_counts(truth, prediction)
    np.testing.assert_array_equal(1000 * row, [2_455_039_000, 2_455_039_000, 2_455_040_000])
    probability = np.full(truth.shape, 0.1, np.float32)
    assert soft_sums(truth, probability)[1] == pytest.approx(float(np.float32(0.1)) * 2_455_040, rel=1e-12)


class TestThresholds:
    def test_counts_at_each_threshold_by_hand(self) -> None:
        probability = np.array([[0.0, 0.25, 0.5], [0.75, 0.999, 1.0]], np.float32)
        sums, counts = soft_sums_and_counts(np.array([[0, 1, 0], [0, 1, 1]]), probability)
        np.testing.assert_allclose(sums, [2.249, 3.499, 3.0], rtol=1e-6)
        assert counts.dtype == np.int64
        found = {at: counts[THRESHOLDS.tolist().index(at)].tolist() for at in (1 / 128, 0.25, 0.5, 0.75, 127 / 128)}
        assert found == {
            1 / 128: [3, 5, 3],
            0.25: [3, 5, 3],
            0.5: [2, 4, 3],
            0.75: [2, 3, 3],
            127 / 128: [2, 2, 3],
        }

    @settings(max_examples=60)
    @given(PAIRS.map(lambda pair: pair[0]), st.integers(0, 2**32))
    def test_counts_are_those_of_each_threshold_by_itself(self, truth, seed) -> None:
        random = np.random.default_rng(seed)
        probability = random.random(truth.shape, np.float32)
        on_a_threshold = random.random(truth.shape) < 0.5
        probability[on_a_threshold] = random.choice([0.0, *THRESHOLDS, 1.0], truth.shape)[on_a_threshold]
        one_by_one = [hard_counts(truth, probability >= threshold) for threshold in THRESHOLDS]
        np.testing.assert_array_equal(soft_sums_and_counts(truth, probability)[1], one_by_one)

    def test_the_best_threshold_is_the_one_nearest_to_a_half_among_equals(self) -> None:
        assert best_threshold([0.1, 0.4, 0.7, 0.9], [0.3, 0.8, 0.8, 0.8]) == (0.4, 0.8)
        assert best_threshold([0.1, 0.5, 0.9], [0.3, 0.8, 0.9]) == (0.9, 0.9)


class TestBoundary:
    def test_the_band_of_a_box_is_a_frame_of_so_many_pixels(self) -> None:
        mask = np.zeros((9, 10), np.uint8)
        mask[1:8, 2:9] = 1
        frame = mask.astype(bool)
        frame[3:6, 4:7] = False
        band = boundary(mask, 2)
        assert band.dtype == bool
        np.testing.assert_array_equal(band, frame)

    def test_a_corner_of_the_background_is_as_near_as_a_side(self) -> None:
        mask = np.ones((7, 7), bool)
        mask[3, 3] = False
        expected = np.ones((7, 7), bool)  # the border is an edge too
        expected[1:-1, 1:-1] = False
        expected[2:5, 2:5] = True
        expected[3, 3] = False
        np.testing.assert_array_equal(boundary(mask, 1), expected)

    def test_an_object_thinner_than_two_bands_is_all_band(self) -> None:
        for shape in ((4, 30), (30, 4), (1, 1)):
            assert boundary(np.ones(shape), 2).all()
        assert not boundary(np.zeros((6, 6)), 2).any()

    @settings(max_examples=60)
    @given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14))), st.integers(1, 5))
    def test_the_band_is_what_so_many_erosions_with_a_square_take_away(self, mask, pixels) -> None:
        mask[3:-1, 2:] = True  # noise alone would leave nothing inside
        eroded = mask
        for _ in range(pixels):
            windows = np.lib.stride_tricks.sliding_window_view(np.pad(eroded, 1), (3, 3))
            eroded = windows.all(axis=(2, 3))
        np.testing.assert_array_equal(boundary(mask, pixels), mask & ~eroded)

    def test_boundary_dice_sees_a_shift_that_dice_hardly_does(self) -> None:
        truth, found = np.zeros((2, 40, 40), bool)
        truth[5:35, 5:35] = True
        found[5:35, 6:36] = True  # a column further to the right
        counts = hard_counts(truth, found)
        np.testing.assert_array_equal(counts, [870, 900, 900])
        bands = hard_counts(boundary(truth, 1), boundary(found, 1))
        # Each frame has 2 * 30 + 2 * 28 pixels; of the rows at top and bottom 29 coincide, of the sides none.
        np.testing.assert_array_equal(bands, [58, 116, 116])
        assert dice(bands) == 0.5
        assert dice(counts) == pytest.approx(29 / 30)

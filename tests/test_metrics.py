"""Dice and IoU by hand, by scikit-learn, and as properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score, jaccard_score

from segtrain.metrics import dice, hard_counts, iou, soft_sums

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


@settings(deadline=None, max_examples=60)
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

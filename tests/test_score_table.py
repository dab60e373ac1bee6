"""Rows of counts, and the scores that derive from them."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segtrain import metrics
from segtrain.metrics import THRESHOLDS, dice, soft_sums_and_counts
from segtrain.score_table import (
    BOUNDARY,
    COLUMNS,
    CURVE,
    HARD,
    PIXELS,
    SEEN,
    SOFT,
    SOFT_TRAINING,
    Scores,
    count_picture,
)


def test_a_picture_is_counted_whole_at_its_boundary_and_by_its_probabilities() -> None:
    truth, probability = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.float32)
    truth[1:5, 1:5] = 1  # 16 pixels, of which all but the inner 4 are within 1 of the edge
    probability[1:5, 2:6] = 0.5
    found = count_picture(truth, probability, 0.5, boundary_pixels=1)
    assert found[SEEN] == 1
    assert found[HARD].tolist() == [12, 16, 16]
    assert found[BOUNDARY].tolist() == [6, 12, 12]
    assert found[SOFT].tolist() == [6.0, 8.0, 16.0]
    assert dice(found[HARD]) == 0.75
    assert count_picture(truth, probability, 0.51, boundary_pixels=1)[HARD].tolist() == [0, 0, 16]


PICTURES = st.tuples(st.integers(1, 9), st.integers(1, 400)).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)),
        hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, *THRESHOLDS.tolist(), 0.3, 1e-9, 1.0])),
    )
)


@pytest.mark.parametrize("block", [7, 2**17])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(picture=PICTURES, threshold=st.sampled_from([0.5, 0.3, 1 / 128, 0.1, 127 / 128]))
def test_counts_are_those_of_plain_arithmetic_on_the_whole_picture(
    monkeypatch: pytest.MonkeyPatch, block: int, picture: tuple[np.ndarray, np.ndarray], threshold: float
) -> None:
    monkeypatch.setattr(metrics, "_BLOCK", block)
    truth, probability = picture
    found = count_picture(truth, probability, threshold, curve=True)
    predicted = probability >= threshold
    assert found[HARD].tolist() == [(truth & predicted).sum(), predicted.sum(), truth.sum()]
    assert count_picture(truth, probability, threshold)[HARD].tolist() == found[HARD].tolist()
    one_by_one = np.array([_plain_counts(truth, probability >= each) for each in THRESHOLDS])
    np.testing.assert_array_equal(found[CURVE], dice(one_by_one))
    np.testing.assert_array_equal(soft_sums_and_counts(truth, probability)[1], one_by_one)
    wide = probability.astype(np.float64)
    np.testing.assert_allclose(found[SOFT], [(wide * truth).sum(), wide.sum(), truth.sum()], rtol=1e-14)
    np.testing.assert_array_equal(count_picture(truth, probability, threshold)[SOFT], found[SOFT])


def _plain_counts(truth: np.ndarray, predicted: np.ndarray) -> list[int]:
    return [(truth * predicted).sum(), predicted.sum(), truth.sum()]


def test_what_nobody_asked_for_is_not_a_number() -> None:
    truth, probability = np.ones((6, 8), np.uint8), np.ones((6, 8), np.float32)
    plain = count_picture(truth, probability, 0.5)
    assert plain[[SEEN, PIXELS]].tolist() == [1, 48]
    assert np.isnan(plain[BOUNDARY]).all()
    assert np.isnan(plain[SOFT_TRAINING]).all()
    assert np.isnan(plain[CURVE]).all()
    small = np.array([6.0, 6.0, 12.0])
    whole = count_picture(truth, probability, 0.5, boundary_pixels=1, at_training_size=small, curve=True)
    assert whole[SOFT_TRAINING].tolist() == [6.0, 6.0, 12.0]
    assert whole[CURVE].tolist() == [1.0] * 127
    assert np.isfinite(whole).all()


def test_tables_of_several_workers_add_up_and_a_picture_counts_once() -> None:
    tables = np.zeros((2, 3, COLUMNS))
    tables[0, 0, SEEN] = tables[1, 2, SEEN] = 1
    assert Scores(["a", "b", "c"], tables.sum(axis=0)).ids == ["a", "c"]
    tables[1, 0, SEEN] = 1
    with pytest.raises(AssertionError, match="twice"):
        Scores(["a", "b", "c"], tables.sum(axis=0))


def test_scores_add_up_over_pictures_or_over_pixels() -> None:
    table = np.zeros((2, COLUMNS))
    table[:, SEEN] = 1
    table[0, HARD], table[0, SOFT] = [10, 10, 20], [5, 5, 20]  # half right; the other is rightly empty
    found = Scores(["a", "b"], table).summary(("dice_hard_original", "iou_hard_original", "dice_soft"))
    assert found["dice_hard_original"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["iou_hard_original"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["dice_hard_original_set"] == pytest.approx(2 / 3)
    assert found["dice_soft"] == pytest.approx((0.4 + 1) / 2)

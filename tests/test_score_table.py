"""Rows of counts, and the scores that derive from them."""

import numpy as np
import pytest

from segtrain.metrics import dice
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


def test_what_nobody_asked_for_is_not_a_number() -> None:
    truth, probability = np.ones((6, 8), np.uint8), np.ones((6, 8), np.float32)
    plain = count_picture(truth, probability, 0.5)
    assert plain[[SEEN, PIXELS]].tolist() == [1, 48]
    assert np.isnan(plain[BOUNDARY]).all()
    assert np.isnan(plain[SOFT_TRAINING]).all()
    assert np.isnan(plain[CURVE]).all()
    small = np.ones((3, 4)), np.full((3, 4), 0.5)
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

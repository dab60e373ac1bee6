"""Scores of a fold are those of its pictures, whoever scored them and in whatever order they came."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.score_table import BOUNDARY, COLUMNS, HARD, SEEN, SOFT
from segtrain.scoring.fold_scores import FoldScores, ScoredPictures, Worst


def counts(overlap: int, predicted: int = 10, true: int = 10) -> np.ndarray:
    row = np.full(COLUMNS, np.nan)
    row[SEEN], row[HARD], row[BOUNDARY], row[SOFT] = 1, (overlap, predicted, true), (1, 2, 2), (0.5, 1.0, 3.0)
    return row


def scored(found: dict[int, np.ndarray], **more: object) -> ScoredPictures:
    return ScoredPictures(0.4, "digest", found, {number: b"%d" % number for number in found}, **more)


def test_the_summary_is_the_mean_over_pictures_and_the_set_is_all_pixels_at_once() -> None:
    scores = FoldScores(["a", "b", "c"], worst=0)
    scores.add(scored({0: counts(5), 2: counts(30, 30, 30)}, unreadable={"b": "no picture"}))
    found = scores.summary()
    assert found == {
        "pictures": 2,
        "threshold": 0.4,
        "dice_hard_original": pytest.approx((0.5 + 1.0) / 2),
        "iou_hard_original": pytest.approx((5 / 15 + 1.0) / 2),
        "boundary_dice": 0.5,
        "dice_soft": 0.25,
        "dice_hard_original_set": pytest.approx(70 / 80),
    }
    columns = scores.per_picture()
    assert tuple(columns) == (
        "id",
        "dice_hard_original",
        "iou_hard_original",
        "boundary_dice",
        "dice_soft",
        "predicted_pixels",
        "true_pixels",
    )
    assert columns["id"] == ["a", "c"], "in the fold's order, without those that have no scores"
    assert (columns["predicted_pixels"], columns["true_pixels"]) == ([10, 30], [10, 30])
    assert scores.unreadable == {"b": "no picture"}


@given(
    st.lists(st.integers(0, 10), min_size=1, max_size=12).flatmap(
        lambda overlaps: st.tuples(st.just(overlaps), st.permutations(range(len(overlaps))), st.integers(1, 4))
    ),
    st.integers(0, 5),
)
def test_neither_the_number_of_workers_nor_their_order_shows(case, worst: int) -> None:
    overlaps, order, workers = case
    ids = [f"p{number:02d}" for number in range(len(overlaps))]
    whole = FoldScores(ids, worst)
    whole.add(scored({number: counts(overlap) for number, overlap in enumerate(overlaps)}))
    parted = FoldScores(ids, worst)
    worst_of = [Worst(worst) for _ in range(workers)]
    for place, number in enumerate(order):
        one = counts(overlaps[number])
        admitted = worst_of[place % workers].admits(number, one)
        parted.add(ScoredPictures(0.4, "digest", {number: one}, {number: b"%d" % number} if admitted else {}))
    assert parted.summary() == whole.summary()
    assert parted.per_picture() == whole.per_picture()
    lowest = sorted(range(len(ids)), key=lambda number: (overlaps[number], number))[:worst]
    assert list(parted.panels().items()) == [(ids[number], b"%d" % number) for number in lowest]


def test_a_picture_that_comes_again_takes_no_other_ones_place_among_the_worst() -> None:
    worst = Worst(2)
    assert [worst.admits(number, counts(overlap)) for number, overlap in ((0, 5), (1, 3), (1, 3))] == [True] * 3
    assert worst.numbers == [1, 0]
    assert not worst.admits(2, counts(5)), "of equals the first stays"
    assert not Worst(0).admits(0, counts(0))


def test_a_picture_that_was_scored_twice_is_noticed() -> None:
    scores = FoldScores(["a"], worst=1)
    scores.add(scored({0: counts(5)}))
    with pytest.raises(AssertionError, match="twice"):
        scores.add(scored({0: counts(5)}))

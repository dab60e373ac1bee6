"""Where the lines of parallel coordinates pass."""

from typing import Any

import pytest

from segtrain.config import Axis
from segtrain.report.coordinates import NOT_SEARCHED, parallel
from segtrain.runs.trials import ScoredEpoch, Trial

AXES = {
    "model.filters": Axis(choice=[8, 16]),
    "optimizer.learning_rate": Axis(loguniform=[1e-4, 1e-2]),
    "loss.dice_smooth": Axis(uniform=[0, 1], when={"model.filters": 16}),
}


def trial(number: int, dice: float, **point: Any) -> Trial:
    names = {"filters": "model.filters", "rate": "optimizer.learning_rate", "smooth": "loss.dice_smooth"}
    return Trial(
        number, {names[key]: value for key, value in point.items()}, "finished", "", (ScoredEpoch(1, dice, 1.0, 1.0),)
    )


RANKED = [
    trial(3, 0.9, filters=16, rate=1e-3, smooth=0.5),
    trial(1, 0.8, filters=8, rate=1e-2),
    trial(0, 0.7, filters=16, rate=1e-4, smooth=0.0),
    trial(2, 0.5, filters=32, rate=1e-3, smooth=1.0),
]


def heights(axis: int) -> dict[int, float]:
    """Trial -> its height on an axis, by number of the axis from the left."""
    figure = parallel(RANKED, AXES)
    width = len(AXES) + 2  # with dice, and the gap after a line
    lines = [trace for trace in figure["data"] if "customdata" in trace]
    return {
        trace["customdata"][start]: trace["y"][start + axis]
        for trace in lines
        for start in range(0, len(trace["customdata"]), width)
    }


def test_a_category_is_a_lane_in_which_the_better_trial_is_higher() -> None:
    found = heights(0)
    # Of three values, 32 coming from a starting point, 16 is in the middle.
    assert found[3] > 0.5 > found[0] > found[1]
    assert found[3] - found[0] < 0.11
    assert found[2] > 0.7
    assert abs(found[1] - 1 / 6) < 0.06


def test_a_logarithmic_axis_runs_from_the_lowest_to_the_highest_value() -> None:
    assert heights(1) == pytest.approx({3: 0.5, 1: 1.0, 0: 0.0, 2: 0.5})


def test_an_axis_that_does_not_apply_is_passed_below() -> None:
    assert heights(2) == pytest.approx({3: 0.5, 1: NOT_SEARCHED, 0: 0.0, 2: 1.0})
    notes = [note["text"] for note in parallel(RANKED, AXES)["layout"]["annotations"]]
    assert notes.count("not searched") == 1


def test_dice_is_the_last_axis_and_the_best_trial_is_drawn_last() -> None:
    assert heights(3) == pytest.approx({3: 1.0, 1: 0.75, 0: 0.5, 2: 0.0})
    assert parallel(RANKED, AXES)["data"][-1]["customdata"][0] == 3


def test_one_trial_alone_is_in_the_middle() -> None:
    figure = parallel(RANKED[:1], AXES)
    assert figure["data"][-1]["y"][1:4] == [0.5, 0.5, 0.5]


def test_text_of_users_is_no_markup() -> None:
    strange = Trial(0, {"model.kind": "<a href='x'>"}, "finished", "", (ScoredEpoch(1, 0.5, 1.0, 1.0),))
    texts = [note["text"] for note in parallel([strange], {"model.kind": None})["layout"]["annotations"]]
    assert "&lt;a href='x'&gt;" in texts

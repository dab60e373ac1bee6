"""What the charts say, in numbers."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.report.charts import HISTOGRAM_BARS, MOST_POINTS, bins, run_charts, thinned
from segtrain.report.folders import read_run, read_sweep_folder
from segtrain.report.sweep_charts import MOST_EPOCHS, sweep_charts, words
from segtrain.runs.trials import ScoredEpoch, Sweep, Trial
from segtrain.storage.files import Storage
from tests.support import made_runs


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(1, 20))
def test_thinning_keeps_the_order_the_bounds_and_the_mean_of_each_stretch(values: list[float], most: int) -> None:
    x, y = thinned(range(len(values)), values, most)
    assert len(x) == len(y) == min(len(values), most)
    assert x == sorted(x)
    assert min(values) - 1e-9 <= min(y)
    assert max(y) <= max(values) + 1e-9
    if len(values) % most == 0:
        assert sum(y) / len(y) == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_curves_lie_over_epochs(tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "run", epochs=3, panels=0)
    run = read_run(str(tmp_path / "run"), Storage())
    assert run is not None
    charts = run_charts(run)
    steps, means = charts["loss"]["data"]
    assert steps["x"][0] == pytest.approx(1 / made_runs.STEPS_PER_EPOCH)
    assert steps["x"][-1] == 3
    assert means["x"] == [1, 2, 3]
    compute, wait = charts["time"]["data"]
    assert (compute["y"], wait["y"]) == ([1.75] * 3, [0.25] * 3)
    assert charts["loss"]["layout"]["xaxis"]["title"]["text"] == "epoch"


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_a_histogram_counts_every_picture_once_in_its_bar(millionths: list[int]) -> None:
    dice = [value / 1e6 for value in millionths]
    width, counts = bins(dice)
    assert sum(counts.values()) == len(dice)
    assert max(counts) - min(counts) <= HISTOGRAM_BARS
    for bar, count in counts.items():
        assert count <= sum(bar * width - 1e-6 <= value <= (bar + 1) * width + 1e-6 for value in dice)


def test_of_very_many_pictures_the_worst_are_all_there(tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "run", epochs=1, pictures=5000, panels=0)
    run = read_run(str(tmp_path / "run"), Storage())
    assert run is not None
    (points,) = run_charts(run)["foreground"]["data"]
    assert len(points["y"]) == MOST_POINTS
    assert points["y"][:100] == sorted(run.best["validation_dice"])[:100]


def test_a_sweep_has_its_front_and_its_stopped_trials(tmp_path: Path) -> None:
    trials = [
        Trial(0, {"model.filters": 8}, "finished", "", (ScoredEpoch(1, 0.5, 1.0, 9.0), ScoredEpoch(2, 0.8, 2.0, 9.0))),
        Trial(1, {"model.filters": 16}, "stopped", "a < b", (ScoredEpoch(1, 0.6, 4.0, 9.0),)),
        Trial(2, {"model.filters": 32}, "finished", "", (ScoredEpoch(1, 0.7, 4.0, 9.0), ScoredEpoch(2, 0.9, 8.0, 9.0))),
        Trial(3, {"model.filters": 64}, "infeasible", "too large"),
    ]
    made_runs.write_made_sweep(tmp_path / "sweep", trials, panels=0)
    charts = sweep_charts(read_sweep_folder(str(tmp_path / "sweep"), Sweep("finished"), Storage()))
    front = charts["cost"]["data"][-1]
    assert (front["name"], front["customdata"]) == ("Pareto front", [0, 2])
    curves = {trace["name"]: trace for trace in charts["curves"]["data"]}
    assert curves["stopped early"]["customdata"] == [1, 1]
    assert (curves["finished"]["x"], curves["finished"]["y"]) == ([1, 2, None], [0.5, 0.8, None])
    assert (curves["ended here"]["x"], curves["ended here"]["y"]) == ([1], [0.6])
    assert curves["best, trial 2"]["y"] == [0.7, 0.9, None]
    assert "a &lt; b" in words(trials[1])
    assert "importance" not in charts


def test_a_long_trial_keeps_its_last_epoch(tmp_path: Path) -> None:
    history = tuple(ScoredEpoch(epoch, epoch / 1000, float(epoch), 1.0) for epoch in range(1, 500))
    made_runs.write_made_sweep(tmp_path / "sweep", [Trial(0, {}, "finished", "", history)], panels=0)
    charts = sweep_charts(read_sweep_folder(str(tmp_path / "sweep"), Sweep("finished"), Storage()))
    drawn = charts["curves"]["data"][-1]["x"]
    assert len(drawn) <= MOST_EPOCHS + 1
    assert drawn[-2:] == [499, None]

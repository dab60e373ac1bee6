"""Which trials are stopped, by hand-computed rungs and medians; Ray Tune's rules are called as its controller does."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from segtrain.config import Recipe
from segtrain.runs.trials import Sweep as SweepFacts
from segtrain.runs.trials import Trial, read_trials, write_sweep
from segtrain.storage.files import Storage
from segtrain.tune.stopping import FAILED, Budget, Stopping
from segtrain.tune.sweep_record import SweepRecord


@dataclass
class TuneTrial:
    """What the rules read of Ray Tune's own trial."""

    number: int
    config: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.config = {"number": self.number}


def record_in(folder: Path) -> SweepRecord:
    write_sweep(str(folder), SweepFacts("running"), Storage())
    return SweepRecord(str(folder), Storage())


def recipe(**tune: Any) -> Recipe:
    return Recipe.from_dict({"train": {"epochs": 9}, "tune": tune})


class Controller:
    """Reports to a rule as Ray Tune does."""

    def __init__(self, folder: Path, **tune: Any) -> None:
        self.record = record_in(folder)
        self.rule = Stopping(recipe(**tune), self.record)

    def start(self, number: int) -> None:
        self.record.put(Trial(number, {}, "running"))
        self.rule.on_trial_add(None, TuneTrial(number))

    def report(self, number: int, epoch: int, dice: float, gpu_s: float = 1.0) -> str:
        told = {"epoch": epoch, "epochs": 9, "dice": dice, "gpu_s": gpu_s, "images_per_s": 2.0, "done": False}
        return self.rule.on_trial_result(None, TuneTrial(number), told)


def test_asha_keeps_the_best_third_at_each_rung(tmp_path: Path) -> None:
    sweep = Controller(tmp_path, stop="asha", grace=1, reduction=3)
    for number in range(4):
        sweep.start(number)
    # Cut-offs at the first rung: none, 0.5, and the 67th percentiles of (0.5, 0.6) and (0.5, 0.6, 0.55).
    assert [sweep.report(number, 1, dice) for number, dice in enumerate((0.5, 0.6, 0.55, 0.59))] == [
        "CONTINUE",
        "CONTINUE",
        "STOP",
        "CONTINUE",
    ]
    assert sweep.record[2].status == "stopped"
    assert sweep.record[2].reason == "not among the best 1/3 at epoch 1 (ASHA)"
    assert sweep.report(1, 2, 0.1) == "CONTINUE"  # no rung, and its best stays 0.6


def test_the_best_dice_so_far_is_what_counts(tmp_path: Path) -> None:
    sweep = Controller(tmp_path, stop="asha", grace=3, reduction=3)
    for number in (0, 1):
        sweep.start(number)
    sweep.report(0, 3, 0.5)
    sweep.report(1, 2, 0.6)
    assert sweep.report(1, 3, 0.4) == "CONTINUE"


def test_a_trial_at_its_last_epoch_is_let_to_end_by_itself(tmp_path: Path) -> None:
    sweep = Controller(tmp_path, stop="asha", grace=9, reduction=3)
    for number in (0, 1):
        sweep.start(number)
    sweep.report(0, 9, 0.5)
    assert sweep.report(1, 9, 0.1) == "CONTINUE"
    assert sweep.record[1].status == "running"


def test_rungs_may_be_seconds_of_training(tmp_path: Path) -> None:
    sweep = Controller(tmp_path, stop="asha", clock="gpu_s", grace=10, reduction=2)
    for number in (0, 1):
        sweep.start(number)
    assert sweep.report(0, 4, 0.5, gpu_s=11.0) == "CONTINUE"
    assert sweep.report(1, 1, 0.1, gpu_s=9.0) == "CONTINUE"
    assert sweep.report(1, 2, 0.1, gpu_s=12.0) == "STOP"
    assert sweep.record[1].reason == "not among the best 1/2 after 12 GPU-seconds (ASHA)"


def test_the_median_rule_stops_what_is_worse_than_half_of_the_others(tmp_path: Path) -> None:
    sweep = Controller(tmp_path, stop="median", grace=1)
    for number, dice in enumerate((0.5, 0.6, 0.7)):
        sweep.start(number)
        assert sweep.report(number, 1, dice) == "CONTINUE"
    sweep.start(3)
    assert sweep.report(3, 1, 0.55) == "STOP"
    assert sweep.record[3].reason == "below the median at epoch 1"


def test_without_a_rule_nothing_is_stopped(tmp_path: Path) -> None:
    sweep = Controller(tmp_path, stop="none")
    for number, dice in enumerate((0.9, 0.1)):
        sweep.start(number)
        assert sweep.report(number, 1, dice) == "CONTINUE"


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_a_resumed_sweep_decides_as_an_undisturbed_one(tmp_path: Path, rule: str) -> None:
    sweep = Controller(tmp_path, stop=rule)
    for number, dice in enumerate((0.5, 0.6, 0.7)):
        sweep.start(number)
        sweep.report(number, 1, dice)
    again = Controller(tmp_path, stop=rule)
    again.start(3)
    assert again.report(3, 1, 0.45) == "STOP"
    # A trial that goes on does not meet a rung twice.
    again.rule.on_trial_add(None, TuneTrial(2))
    assert again.report(2, 2, 0.7) == "CONTINUE"


def test_an_error_that_would_come_again_ends_the_trial_with_its_own_words(tmp_path: Path) -> None:
    sweep = Controller(tmp_path, stop="asha")
    sweep.start(0)
    assert sweep.rule.on_trial_result(None, TuneTrial(0), {FAILED: "data.x: mend it"}) == "STOP"
    (trial,) = read_trials(str(tmp_path), Storage())
    assert (trial.status, trial.reason) == ("failed", "data.x: mend it")


class TestBudget:
    def test_gpu_hours_are_those_of_all_trials(self, tmp_path: Path) -> None:
        sweep = Controller(tmp_path, stop="none")
        budget = Budget(recipe(max_gpu_hours=0.01).tune, sweep.record)
        for number in (0, 1):
            sweep.start(number)
            assert not budget.stop_all()
            sweep.report(number, 1, 0.5, gpu_s=20.0)
        assert budget.spent() == "tune.max_gpu_hours (0.01) is spent"

    def test_hours_are_those_of_all_attempts(self, tmp_path: Path) -> None:
        write_sweep(str(tmp_path), SweepFacts("stopped", seconds=3599.0), Storage())
        record = SweepRecord(str(tmp_path), Storage())
        assert Budget(recipe(max_hours=2.0).tune, record).spent() is None
        assert Budget(recipe(max_hours=0.9).tune, record).spent() == "tune.max_hours (0.9) is spent"

    def test_an_interruption_ends_the_sweep_too(self, tmp_path: Path) -> None:
        budget = Budget(recipe().tune, record_in(tmp_path))
        assert not budget.stop_all()
        budget.interrupted = True
        assert budget.stop_all()

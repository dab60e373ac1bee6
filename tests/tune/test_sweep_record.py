"""A sweep's folder is its newest driver's, and whatever moment one is killed at, the next one goes on.

Without Ray: the records of two drivers are used as Ray Tune's loop uses them, one of them held up at the write itself.
"""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from segtrain.config import Recipe
from segtrain.errors import StorageError, TakenOverError, UserError
from segtrain.launch.data_version import Pinned
from segtrain.runs.trials import (
    ScoredEpoch,
    Sweep,
    Trial,
    read_sweep,
    read_trials,
    trial_folder,
    write_sweep,
    write_trial,
)
from segtrain.storage.files import Storage, join
from segtrain.tune import sweep
from segtrain.tune.display import SweepDisplay
from segtrain.tune.stopping import TAKEN, Budget, Stopping
from segtrain.tune.sweep_record import SweepRecord, holds_sweep
from tests.support.labelled import LabelledSet


class Killed(BaseException):
    """As SIGKILL: nothing that would clean up gets to run after it."""


class Held(Storage):
    """Storage that does something at a write with its own hands, before the write itself."""

    before: Callable[[str], None] = staticmethod(lambda url: None)  # type: ignore[assignment]

    def write_if_version(self, url: str, data: bytes, version: str | None) -> None:
        self.before(url)
        super().write_if_version(url, data, version)


@pytest.fixture(params=["local", "in a bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{tmp_path}/sweep" if request.param == "local" else str(request.getfixturevalue("s3_root"))


def begun(folder: str, storage: Storage | None = None) -> SweepRecord:
    """A driver's record of a sweep with a trial that is over and one that is under way."""
    record = SweepRecord(folder, storage or Storage())
    record.claim(resume=False)
    record.put_file("recipe.yaml", "")
    record.put(Trial(0, {}, "finished", history=(ScoredEpoch(1, 0.8, 1.0, 2.0),)))
    record.put(Trial(1, {}, "running", attempts=1))
    record.raise_fault()
    return record


def resumed(folder: str) -> SweepRecord:
    record = SweepRecord(folder, Storage())
    record.claim(resume=True)
    return record


def contents(folder: str) -> dict[str, bytes]:
    storage = Storage()
    names = ["sweep.json", "leaderboard.csv", "best.yaml", *(f"trials/{n:04d}/{f}" for n in range(4) for f in FILES)]
    return {name: storage.read_bytes(join(folder, name)) for name in names if storage.exists(join(folder, name))}


FILES = ("trial.json", "owner")
WRITES: dict[str, Callable[[SweepRecord], None]] = {
    "a score": lambda record: record.put(record.scored(1, ScoredEpoch(1, 0.1, 1.0, 1.0))),
    "a failure": lambda record: record.put(record[1].ended("failed", "its process was lost")),
    "a start": lambda record: record.put(record[1].started()),
    "facts of the sweep": lambda record: record.put_sweep("stopped", "interrupted"),
    "the leaderboard": lambda record: record.put_file("leaderboard.csv", "old"),
    "the best recipe": lambda record: record.put_file("best.yaml", "old"),
    "a trial given out": lambda record: record.give_out(1),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("held", [False, True], ids=["later", "held at the write"])
def test_no_write_of_an_older_driver_lands_after_the_sweep_was_taken_over(
    tmp_path: Path, name: str, held: bool
) -> None:
    folder, storage = f"{tmp_path}/sweep", Held()
    older = begun(folder, storage)
    kept: list[dict[str, bytes]] = []

    def take_over(_: str = "") -> None:
        storage.before = lambda url: None
        newer = resumed(folder)
        newer.put(newer.scored(1, ScoredEpoch(1, 0.9, 1.0, 1.0)))
        newer.give_out(1)
        newer.put_file("leaderboard.csv", "new")
        newer.put_file("best.yaml", "new")
        kept.append(contents(folder))

    if held:
        storage.before = take_over
    else:
        take_over()
    WRITES[name](older)
    assert contents(folder) == kept[0]
    with pytest.raises(TakenOverError, match=r"sweep is searched by another process by now, which began later; this"):
        older.raise_fault()
    older.interrupted("the sweep itself failed")  # on its way out it writes nothing either
    assert contents(folder) == kept[0]


def test_a_trial_that_an_older_driver_adds_after_that_does_not_count(folder: str) -> None:
    storage = Held()
    older = begun(folder, storage)
    newer: list[SweepRecord] = []

    def take_over(_: str) -> None:
        storage.before = lambda url: None
        newer.append(resumed(folder))

    storage.before = take_over
    older.put(Trial(2, {}, "running"))
    assert [trial.number for trial in read_trials(folder, Storage())] == [0, 1]
    older.look()
    assert isinstance(older.fault, TakenOverError)
    newer[0].put(Trial(2, {"model.filters": 8}, "running"))
    newer[0].raise_fault()
    assert [trial.point for trial in read_trials(folder, Storage())] == [{}, {}, {"model.filters": 8}]
    third = resumed(folder)
    assert [trial.number for trial in third.to_resume()] == [1, 2], "a third driver has what the second began"


def test_of_two_drivers_that_begin_one_sweep_at_once_one_has_it(folder: str) -> None:
    storage = Held()
    first, others = SweepRecord(folder, storage), []

    def begin_too(_: str) -> None:
        storage.before = lambda url: None
        others.append(begun(folder))

    storage.before = begin_too
    with pytest.raises(UserError, match="holds a sweep; go on with it by --resume"):
        first.claim(resume=False)
    others[0].put(others[0][1].started())
    others[0].raise_fault()


def test_a_driver_that_was_killed_holds_up_nobody_whichever_write_it_was_at(tmp_path: Path) -> None:
    """Before each write in turn; a resumed driver has the trials, or there is no sweep yet and a new one begins."""
    for number in range(20):
        folder, storage = f"{tmp_path}/{number}", Held()
        left = [number]

        def count(url: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        storage.before = count
        try:
            begun(folder, storage)
        except Killed:
            pass
        else:
            break
        there = holds_sweep(folder, Storage())
        again = SweepRecord(folder, Storage())
        again.claim(resume=there)
        assert [trial.number for trial in again.trials] == list(range(len(again.trials)))
        assert read_sweep(folder, Storage()).state == "running"  # type: ignore[union-attr]
    assert number == 6, "sweep.json, its facts, the recipe, a trial, facts again, and a trial"


def test_a_sweep_of_an_older_segtrain_is_taken_over(folder: str) -> None:
    """Its files name no driver."""
    old = {"state": "running", "reason": "", "seconds": 7.0, "format_version": 1}
    assert replace(Sweep("running", seconds=7.0)).to_json() != ""
    Storage().write_bytes(f"{folder}/sweep.json", str(old).replace("'", '"').encode())
    Storage().write_bytes(f"{folder}/recipe.yaml", b"")
    write_trial(folder, Trial(0, {}, "running"), Storage())
    record = resumed(folder)
    assert [trial.number for trial in record.to_resume()] == [0]
    assert record.seconds >= 7.0


def test_storage_that_fails_ends_the_sweep_with_its_own_words(tmp_path: Path) -> None:
    """Ray Tune would make a traceback of it."""
    storage = Held()
    record = begun(f"{tmp_path}/sweep", storage)

    def fail(url: str) -> None:
        raise StorageError(f"{url}: no answer within 120 s")

    storage.before = fail
    budget = Budget(Recipe().tune, record)
    assert not budget.stop_all()
    record.put(record[1].started())
    assert budget.stop_all()
    with pytest.raises(StorageError, match=r"0001/trial\.json: no answer"):
        record.raise_fault()


def test_trials_without_a_sweep_or_its_recipe_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    folder = f"{tmp_path}/sweep"
    begun(folder)
    for name in ("recipe.yaml", "sweep.json"):
        Path(folder, name).unlink()
        with pytest.raises(UserError, match=rf"sweep holds trials but no {name}; put it back"):
            SweepRecord(folder, Storage()).claim(resume=False)


def test_a_trial_whose_folder_another_process_trains_is_not_failed(tmp_path: Path) -> None:
    record = begun(f"{tmp_path}/sweep")
    rule = Stopping(Recipe(), record)
    told = type("TuneTrial", (), {"config": {"number": 1}})()
    assert rule.on_trial_result(None, told, {TAKEN: "0001 is trained by another process by now"}) == "STOP"
    trial = read_trials(record.folder, Storage())[1]
    assert (trial.status, trial.resumable, trial.is_over) == ("stopped", True, False)
    assert trial.reason == "0001 is trained by another process by now"


def test_a_sweep_whose_driver_was_killed_at_its_end_gets_leaderboard_recipe_and_report(
    labelled: LabelledSet, tmp_path: Path
) -> None:
    """All its trials are over, and `tune.max_trials` has been reached: nothing is left to search."""
    tree = {
        "data": {"root": labelled.root, "height": 16, "width": 16},
        "model": {"filters": 4, "depth": 1},
        "run": {"storage": str(tmp_path), "name": "sweep"},
        "tune": {"space": {"train.seed": {"choice": [0, 1]}}, "search": "random", "max_trials": 2},
    }
    recipe, folder = Recipe.from_dict(tree), str(tmp_path / "sweep")
    write_sweep(folder, Sweep("running"), Storage())
    Path(folder, "recipe.yaml").write_text(recipe.to_yaml())
    for number in range(2):
        history = (ScoredEpoch(1, 0.8 + number / 10, 1.0, 2.0),)
        write_trial(folder, Trial(number, {"train.seed": number}, "finished", history=history), Storage())
        Path(trial_folder(folder, number), "recipe.yaml").write_text(recipe.to_yaml())
    display = SweepDisplay(1.0, io.StringIO())
    best = sweep._Driver(Pinned(recipe, Storage(), None, None), never, [], 1, display).run(resume=True)
    assert best.number == 1
    assert read_sweep(folder, Storage()).state == "finished"  # type: ignore[union-attr]
    assert "dice 0.9000" in Path(folder, "best.yaml").read_text()
    assert Path(folder, "leaderboard.csv").read_text().splitlines()[1].startswith("1,1,finished,0.900000")
    assert Path(folder, "report.html").stat().st_size > 2**20


def never(*_: object) -> None:
    raise AssertionError("nothing is to be trained")

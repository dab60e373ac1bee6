"""Whole sweeps on real Ray, with a NumPy training function: which trials run, end, fail and go on, and what is left.

`tests/jobs/test_tune.py` searches for real.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from segtrain.cluster.failures import DeviceMemoryError
from segtrain.config import Recipe, load_recipe
from segtrain.errors import RunError, UserError
from segtrain.launch.data_version import pinned
from segtrain.launch.earlier_run import as_it_began
from segtrain.runs.status import Driver, Progress, RunSummary, World
from segtrain.runs.trials import Sweep, Trial, read_sweep, read_trials, write_sweep
from segtrain.storage.files import Storage
from segtrain.tune import sweep
from tests.support.labelled import LabelledSet
from tests.support.places import REPOSITORY
from tests.support.waiting import wait_until

BUG, KILLED, MISTAKE, NO_MEMORY = range(1, 5)
"""Seeds of trials that fail."""


@pytest.fixture
def recipe(labelled: LabelledSet, tmp_path: Path) -> Callable[..., Recipe]:
    """A sweep over `space` in `<tmp_path>/sweep`, of 4 epochs a trial, with changes of `tune` and of sections."""

    def make(space: dict[str, Any], tune: dict[str, Any], **sections: dict[str, Any]) -> Recipe:
        tree: dict[str, Any] = {
            "data": {"root": labelled.root, "height": 16, "width": 16},
            "model": {"filters": 4, "depth": 1},
            "schedule": {"kind": "cosine"},
            "train": {"epochs": 4, "global_batch_size": 4},
            "run": {"storage": str(tmp_path), "name": "sweep"},
            "tune": {"space": space, **tune},
        }
        for name, section in sections.items():
            tree[name] = {**tree.get(name, {}), **section}
        return Recipe.from_dict(tree)

    return make


def pretend(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    """Leave in the run's folder what a sweep needs, an epoch at a time; goes on after the last one in the folder.

    After epoch e a trial has a dice of (1 - 2**-e) x learning rate; trials of some seeds fail after epoch 1.
    """
    folder = Path(recipe.run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    record = folder / "epochs"
    done = len(record.read_text().split()) if record.exists() else 0
    rate = recipe.optimizer.learning_rate
    for epoch in range(done + 1, recipe.train.epochs + 1):
        if epoch == 2:
            fail(recipe.train.seed)
        with record.open("a") as file:
            file.write(f"{epoch} ")
        driver.tell(Progress("saved", epoch, recipe.train.epochs, score=(1 - 0.5**epoch) * rate, train_s=float(epoch)))
    return RunSummary(str(folder), recipe.train.epochs, (1 - 0.5**recipe.train.epochs) * rate, 0.0, 0.0, 4.0, 2.0)


def fail(seed: int) -> None:
    if seed == BUG:
        raise ValueError("no such thing")
    if seed == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == MISTAKE:
        raise UserError("data.x: mend it")
    if seed == NO_MEMORY:
        raise DeviceMemoryError("OOM when allocating a tensor", "trace", scoring=False)


def slowly(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    """Like `pretend`, with half a second an epoch."""

    def tell_later(progress: Progress) -> None:
        time.sleep(0.5)
        driver.tell(progress)

    return pretend(recipe, world, Driver(tell_later))


@contextmanager
def searching_slowly(asked: Recipe, path: Path, ray_address: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that searches with `slowly`, as a job does; killed at the end of the block."""
    path.write_text(asked.to_yaml())
    program = "import sys, tests.tune.test_sweep as t; from segtrain import cli; "
    program += "from segtrain.config import load_recipe; "
    program += "sys.exit(cli.main(lambda: t.sweep.run_sweep(load_recipe(sys.argv[1]), t.slowly)))"
    command, environment = [sys.executable, "-c", program, str(path)], os.environ | {"RAY_ADDRESS": ray_address}
    driver = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()


def trials_in(tmp_path: Path) -> list[Trial]:
    return read_trials(str(tmp_path / "sweep"), Storage())


def epochs_of(tmp_path: Path, number: int) -> list[int]:
    """The epochs that a trial has trained, in order; one that was done twice is there twice."""
    return [int(epoch) for epoch in (tmp_path / f"sweep/trials/{number:04d}/epochs").read_text().split()]


def state_of_ray() -> tuple[dict[str, float], int, int]:
    """Resources that are free, placement groups and actors that are not gone."""
    import ray
    from ray._private.state import state

    free = {name: count for name, count in ray.available_resources().items() if name in ("CPU", "GPU")}
    groups = [one for one in ray.util.placement_group_table().values() if one["state"] != "REMOVED"]
    # Ray Train starts one coordinator a cluster, which stays for the next run.
    actors = [
        one
        for one in state.actor_table(None).values()
        if one["State"] != "DEAD" and one["Name"] != "AutoscalingCoordinator"
    ]
    return free, len(groups), len(actors)


def settles(wanted: Any, within_s: float = 120.0) -> Any:
    """`state_of_ray` once it is `wanted`, or what it still is after `within_s`."""
    deadline = time.monotonic() + within_s
    while (found := state_of_ray()) != wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestThroughRay:
    def test_a_failed_trial_is_named_with_its_reason_and_the_others_are_right(
        self, recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        seeds = [[seed, 4] for seed in (0, BUG, KILLED, MISTAKE, NO_MEMORY)] + [[5, 512]]
        asked = recipe(
            {"train.seed,model.filters": {"grid": seeds}},
            {"search": "grid", "stop": "none"},
            cluster={"device_bytes": 64 * 2**20},
        )
        before = state_of_ray()
        best = sweep.run_sweep(asked, pretend)
        found = trials_in(tmp_path)
        assert [trial.status for trial in found] == ["finished", *["failed"] * 4, "infeasible"]
        assert (best.number, best.dice, best.epochs) == (0, pytest.approx(0.9375e-3), 4)
        assert found[BUG].reason == "ValueError: no such thing"
        assert found[KILLED].reason == "its process was lost"
        assert found[MISTAKE].reason == "data.x: mend it"
        assert found[NO_MEMORY].reason.startswith("out of memory on the device (OOM when allocating a tensor) with one")
        assert re.search(r"needs|fit|takes", found[5].reason), found[5].reason
        assert [trial.attempts for trial in found] == [1, 1, 2, 1, 1, 0]
        assert epochs_of(tmp_path, KILLED) == [1]  # the second attempt went on after the first one's epoch
        shown = capsys.readouterr().out
        assert "trial 2: its process was lost; starting it again from its newest checkpoint (1 of 1)" in shown
        assert "trial 1: Traceback" in shown
        assert "no such thing" in shown
        assert settles(before) == before
        assert read_sweep(str(tmp_path / "sweep"), Storage()).state == "finished"  # type: ignore[union-attr]

    @pytest.mark.slow  # a minute under load: each trial is a process that imports Ray Tune
    def test_after_ten_stopped_trials_nothing_of_them_is_left(
        self, recipe: Callable[..., Recipe], tmp_path: Path
    ) -> None:
        # Rates fall, so that each trial is worse at the first rung than those before; two of them may be there first.
        rates = [1.0, *(0.5 - 0.01 * number for number in range(12))]
        asked = recipe(
            {"optimizer.learning_rate": {"grid": rates}},
            {"search": "grid", "max_concurrent": 2, "grace": 1, "reduction": 3},
        )
        before = state_of_ray()
        sweep.run_sweep(asked, pretend)
        found = trials_in(tmp_path)
        assert sum(trial.status == "stopped" for trial in found) >= 10
        assert found[-1].reason == "not among the best 1/3 at epoch 1 (ASHA)"
        assert settles(before) == before
        again = load_recipe(tmp_path / "sweep" / "best.yaml")
        assert (again.train.epochs, again.schedule.horizon_epochs) == (4, 4)  # type: ignore[union-attr]
        assert again.optimizer.learning_rate == 1.0
        lines = (tmp_path / "sweep" / "leaderboard.csv").read_text().splitlines()
        assert len(lines) == 1 + len(rates)
        assert lines[1].startswith("1,0,finished,")

    @pytest.mark.slow  # likewise, with 12 trials twice
    def test_a_sweep_whose_driver_was_killed_goes_on_where_it_was(
        self, recipe: Callable[..., Recipe], tmp_path: Path, ray_session: str
    ) -> None:
        asked = recipe(
            {"optimizer.learning_rate": {"loguniform": [1e-3, 1e-1]}},
            {"search": "random", "stop": "none", "max_trials": 12, "max_concurrent": 2},
        )
        with searching_slowly(asked, tmp_path / "recipe.yaml", ray_session) as driver:
            wait_until(lambda: driver.poll() is not None or sum(trial.is_over for trial in trials_in(tmp_path)) >= 5)
            assert driver.poll() is None
        over = {trial.number: trial for trial in trials_in(tmp_path) if trial.is_over}
        assert len(over) < 12
        with pytest.raises(UserError, match="holds a sweep; go on with it by --resume"):
            sweep.run_sweep(asked, pretend)
        best = sweep.run_sweep(asked, pretend, resume=True)
        found = trials_in(tmp_path)
        assert [trial.status for trial in found] == ["finished"] * 12
        assert all(found[number] == trial for number, trial in over.items())
        assert all(epochs_of(tmp_path, trial.number) == [1, 2, 3, 4] for trial in found)
        # The points are those of a sweep that nobody disturbed.
        undisturbed = Recipe.from_dict({**asked.to_dict(), "run": {"storage": str(tmp_path), "name": "other"}})
        assert sweep.run_sweep(undisturbed, pretend).dice == best.dice
        assert [trial.point for trial in read_trials(str(tmp_path / "other"), Storage())] == [
            trial.point for trial in found
        ]

    @pytest.mark.slow  # likewise
    def test_of_two_drivers_of_one_sweep_the_later_one_goes_on_and_the_other_ends_with_a_sentence(
        self, recipe: Callable[..., Recipe], tmp_path: Path, ray_session: str
    ) -> None:
        asked = recipe(
            {"optimizer.learning_rate": {"loguniform": [1e-3, 1e-1]}},
            {"search": "random", "stop": "none", "max_trials": 5, "max_concurrent": 2},
        )
        with searching_slowly(asked, tmp_path / "recipe.yaml", ray_session) as older:
            wait_until(lambda: older.poll() is not None or any(trial.history for trial in trials_in(tmp_path)))
            assert older.poll() is None
            sweep.run_sweep(asked, slowly, resume=True)
            told = older.communicate(timeout=300)[1]
        assert older.returncode == 2
        assert f"error: {tmp_path}/sweep is searched by another process by now, which began later; this one" in told
        assert "Traceback" not in told
        found = trials_in(tmp_path)
        assert [trial.status for trial in found] == ["finished"] * 5
        # An epoch that the older one's process ended in between is told from the run's record, which `slowly` lacks.
        for trial in found:
            epochs = [scored.epoch for scored in trial.history]
            assert epochs == sorted(set(epochs))
            assert epochs[-1] == 4
        assert len((tmp_path / "sweep" / "leaderboard.csv").read_text().splitlines()) == 6

    @pytest.mark.slow  # likewise
    def test_a_spent_budget_leaves_a_sweep_that_goes_on_with_a_larger_one(
        self, recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        space = {"optimizer.learning_rate": {"grid": [0.1, 0.2, 0.3]}}
        settings = {"search": "grid", "stop": "none", "max_concurrent": 1}
        # A trial takes 4 "seconds", so the budget ends in the second one.
        sweep.run_sweep(recipe(space, {**settings, "max_gpu_hours": 6 / 3600}), slowly)
        assert "tune.max_gpu_hours (0.00166667) is spent; raise it and add --resume to go on" in capsys.readouterr().out
        first, second = trials_in(tmp_path)
        assert (first.status, second.status, second.resumable) == ("finished", "stopped", True)
        sweep.run_sweep(recipe(space, settings), pretend, resume=True)
        assert [trial.status for trial in trials_in(tmp_path)] == ["finished"] * 3
        assert sorted(set(epochs_of(tmp_path, 1))) == [1, 2, 3, 4]
        with pytest.raises(UserError, match=r"--resume: .* holds another sweep \(tune\.seed: 0 -> 1\)"):
            sweep.run_sweep(recipe(space, {**settings, "seed": 1}), pretend, resume=True)

    @pytest.mark.slow  # likewise
    def test_a_stopped_job_leaves_a_sweep_that_goes_on(
        self, recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """`ray job stop` and a scheduler send SIGTERM, a person SIGINT."""
        asked = recipe({"optimizer.learning_rate": {"grid": [0.1, 0.2]}}, {"search": "grid", "max_concurrent": 1})
        (tmp_path / "pid").write_text(str(os.getpid()))
        with pytest.raises(KeyboardInterrupt):
            sweep.run_sweep(asked, stops_the_driver)
        assert "interrupted; the same command with --resume goes on with" in capsys.readouterr().out
        (trial,) = trials_in(tmp_path)
        assert (trial.status, trial.resumable, trial.epochs) == ("stopped", True, 1)
        assert read_sweep(str(tmp_path / "sweep"), Storage()).state == "stopped"  # type: ignore[union-attr]
        sweep.run_sweep(asked, pretend, resume=True)
        assert [trial.status for trial in trials_in(tmp_path)] == ["finished"] * 2

    @pytest.mark.slow  # 40 s: each trial starts a controller and two workers
    def test_a_trial_of_several_workers_is_a_run_of_its_own(
        self, recipe: Callable[..., Recipe], tmp_path: Path
    ) -> None:
        asked = recipe(
            {"optimizer.learning_rate": {"grid": [1.0, 0.2, 0.1]}},
            {"search": "grid", "grace": 1, "reduction": 3},
            cluster={"workers": 2},
        )
        before = state_of_ray()
        assert sweep._check_cluster(asked) == 2
        best = sweep.run_sweep(asked, only_the_chief_tells)
        found = trials_in(tmp_path)
        assert best.number == 0
        assert found[0].status == "finished"
        assert {trial.status for trial in found[1:]} <= {"stopped", "finished"}
        assert found[0].gpu_s == 8.0  # 4 seconds on two replicas
        assert settles(before) == before

    def test_a_sweep_without_a_score_says_where_the_reasons_are(
        self, recipe: Callable[..., Recipe], tmp_path: Path
    ) -> None:
        with pytest.raises(RunError, match=r"no trial of .* was scored; leaderboard\.csv there has the reasons"):
            sweep.run_sweep(recipe({"train.seed": {"grid": [7]}}, {"search": "grid"}), mistaken)

    def test_more_than_a_node_has_is_refused_before_anything_starts(
        self, recipe: Callable[..., Recipe], tmp_path: Path
    ) -> None:
        asked = recipe(
            {"train.seed": {"grid": [1]}}, {}, train={"global_batch_size": 8}, cluster={"gpus_per_worker": 8}
        )
        with pytest.raises(UserError, match="asks for 1 worker with 1 CPU and 8 GPUs each"):
            sweep.run_sweep(asked, pretend)
        assert not (tmp_path / "sweep").exists()


def only_the_chief_tells(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    """`slowly` on the chief; the other worker waits as long as a peer in a collective would."""
    if world.is_chief:
        return slowly(recipe, world, driver)
    time.sleep(0.5 * recipe.train.epochs)
    return RunSummary(recipe.run.folder, 0, 0.0, 0.0, 0.0, 0.0, 0.0)


def stops_the_driver(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    """`slowly`, and SIGTERM to the process that searches after the first epoch."""

    def tell_and_stop(progress: Progress) -> None:
        driver.tell(progress)
        if progress.epoch == 1:
            os.kill(int(Path(recipe.run.folder).parents[2].joinpath("pid").read_text()), signal.SIGTERM)
            time.sleep(60)  # the driver notices within a second, and ends this

    return pretend(recipe, world, Driver(tell_and_stop))


def mistaken(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    raise UserError("data.x: mend it")


class TestRefused:
    def test_a_resume_of_a_folder_without_a_sweep(self, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
        asked = recipe({"train.seed": {"grid": [1]}}, {})
        with pytest.raises(UserError, match=r"--resume: .*sweep holds no sweep; check run\.storage and run\.name"):
            sweep.check_sweep(asked, Storage(), resume=True)

    def test_a_folder_with_a_sweep_record_that_is_not_ours(self, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
        (tmp_path / "sweep").mkdir()
        (tmp_path / "sweep" / "sweep.json").write_text(json.dumps([1]))
        with pytest.raises(UserError, match=r"sweep\.json is not what jobs/tune\.py of this segtrain writes"):
            sweep.check_sweep(recipe({"train.seed": {"grid": [1]}}, {}), Storage(), resume=False)

    def test_all_folds_at_once(self, recipe: Callable[..., Recipe]) -> None:
        asked = Recipe.from_dict({**recipe({"train.seed": {"grid": [1]}}, {}).to_dict(), "folds": "all"})
        with pytest.raises(UserError, match="leave folds=all out"):
            sweep.check_sweep(asked, Storage(), resume=False)

    def test_a_start_that_is_neither_a_recipe_nor_a_run(self, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
        asked = recipe({"train.seed": {"grid": [1]}}, {"start_from": [str(tmp_path)]})
        with pytest.raises(UserError, match=r"tune\.start_from: .* is neither a recipe file nor the folder of a run"):
            sweep.check_sweep(asked, Storage(), resume=False)


def test_a_resumed_sweep_keeps_the_lanes_that_it_began_with(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """Also one that was begun when there were always 16."""
    space = {"train.seed": {"grid": [1]}}
    began = recipe(space, {}, data={"lanes": 16, "shuffle_window_bytes": 16 * 2**20}, train={"global_batch_size": 12})
    write_sweep(str(tmp_path / "sweep"), Sweep("running"), Storage())
    (tmp_path / "sweep/recipe.yaml").write_text(began.to_yaml())
    again = recipe(space, {}, train={"global_batch_size": 12})
    resumed = as_it_began(again)
    assert resumed.data.lanes == 16
    sweep.check_sweep(resumed, Storage(), resume=True)
    assert pinned(resumed, Storage()).recipe.data.lanes == 16
    assert pinned(again.updated({"run.name": "new"}), Storage()).recipe.data.lanes == 12
    other = as_it_began(again.updated({"data.lanes": 12}))
    with pytest.raises(UserError, match=r"--resume: .* holds another sweep \(data\.lanes: 16 -> 12\)"):
        sweep.check_sweep(other, Storage(), resume=True)

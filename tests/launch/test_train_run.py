"""Launching without TensorFlow: a NumPy training function stands in, so that only the machinery is under test."""

import json
import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from segtrain.cluster.failures import WorkerError, comes_again
from segtrain.cluster.watchdog import Stuck
from segtrain.config import Recipe, override
from segtrain.errors import RunError, StorageError, TakenOverError, UserError
from segtrain.launch import supervisor, train_run, train_worker
from segtrain.runs import goodput
from segtrain.runs.ownership import RunClaim, take_run
from segtrain.runs.status import Account, Driver, Left, Progress, RunSummary, World
from segtrain.storage.files import Storage
from tests.support.waiting import wait_until


@pytest.fixture
def recipe(data_root: str, tmp_path: Path) -> Recipe:
    """One worker, four pictures a step, 9 to train on."""
    fields = [f"data.root={data_root}", f"run.storage={tmp_path}", "run.name=test", "train.global_batch_size=4"]
    return override(Recipe(), fields)


def summary_of(recipe: Recipe, **changes: float) -> RunSummary:
    facts = {"epoch": 1, "dice_hard_original": 0.9, "dice_soft": 0.8, "iou_hard_original": 0.7}
    return RunSummary(**{"folder": recipe.run.folder, "train_seconds": 1.0, "images_per_s": 2.0, **facts, **changes})


def count_attempt(recipe: Recipe, world: World) -> int:
    """How many times this rank has started, this time included."""
    mark = Path(recipe.run.storage) / f"attempts-{world.rank}"
    with mark.open("a") as file:
        file.write("x")
    return mark.stat().st_size


def write_facts(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    facts = {
        "workers": world.workers,
        "tf_config": os.environ.get("TF_CONFIG"),
        "legacy_keras": os.environ.get("TF_USE_LEGACY_KERAS"),
        "tensorflow": "tensorflow" in sys.modules,
        "folder": os.getcwd(),
    }
    Path(recipe.run.storage, f"facts-{world.rank}.json").write_text(json.dumps(facts))
    logging.getLogger("segtrain.training").warning("a checkpoint is damaged")
    for step in range(1, 4):
        driver.tell(Progress("training", 1, 1, step, 3, images_per_s=5.0, loss=1.0 / step, dice=0.5))
    return summary_of(recipe)


def until_asked(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    """Leave at step 7 once asked to; until then, tell of steps."""
    account = Account(first_step=0, step=5, saved_step=4, starting_s=0.5, steps_s=1.0)
    driver.tell(Progress("training", 1, 9, 5, 9, account=account))
    while not driver.wants_to_leave():
        time.sleep(0.05)
    driver.tell(Progress("leaving", 1, 9, 7, 9, account=replace(account, step=7, saved_step=7, steps_s=1.5)))
    raise Left(7)


def loses_its_folder(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    """Another driver claims the folder while this run is under way; asked to leave, the run looks before it saves."""
    assert driver.claim is not None
    claim = RunClaim(recipe.run.folder, Storage(), driver.claim)
    claim.begin_chief()
    driver.tell(Progress("training", 1, 9, 5, 9, account=Account(0, 5, 4, starting_s=0.5, steps_s=1.0)))
    take_run(recipe.run.folder, Storage())
    while not driver.wants_to_leave():
        time.sleep(0.05)
    claim.check()
    raise AssertionError("it would have saved")


def dies_in_anothers_folder(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    if count_attempt(recipe, world) > 1:
        raise AssertionError("it would have taken the folder back")
    take_run(recipe.run.folder, Storage())
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def sleep_for_ever() -> None:
    while True:
        time.sleep(0.1)


def wait_in_tensorflow() -> None:
    """As a worker that waits for another in a collective; the file's place is what tells."""
    exec(compile("import time\nwhile True: time.sleep(0.1)", "/somewhere/tensorflow/python/eager/execute.py", "exec"))


@pytest.fixture
def until_read(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Waits until the driver has read of a step; its record then has it, as it is written each time."""
    monkeypatch.setattr(supervisor, "WRITE_EVERY_S", 0.0)

    def has_read() -> bool:
        return any(attempt.step for attempt in goodput.read(recipe.run.folder, Storage()).attempts)

    return lambda: wait_until(has_read)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestRuns:
    def test_one_worker_trains_and_its_summary_comes_back(
        self, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = set(sys.modules)  # other tests of the session may have imported it
        assert train_run.launch(recipe, write_facts) == summary_of(recipe)
        facts = json.loads((tmp_path / "facts-0.json").read_text())
        assert facts["workers"] == 1
        assert facts["tf_config"] is None, "one worker needs no cluster"
        assert not facts["tensorflow"]
        shown = capsys.readouterr().out
        assert "worker 0: a checkpoint is damaged" in shown
        assert "step 3/3" in shown
        assert "hard dice 0.9000 at original resolution" in shown
        assert f"{tmp_path}/test/best/model.keras" in shown
        assert f"python jobs/evaluate.py {tmp_path}/test {recipe.data.root}" in shown
        assert "tensorflow" not in set(sys.modules) - before, "the driver must not import TensorFlow"

    def test_a_killed_worker_is_started_again_and_the_run_ends_right(
        self, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def die_once(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
            attempt = count_attempt(recipe, world)
            if attempt == 1 and world.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if attempt == 1:
                time.sleep(60.0)  # as in a collective that the other worker never joins
            write_facts(recipe, world, driver)
            return summary_of(recipe, epoch=attempt)

        summary = train_run.launch(override(recipe, ["cluster.workers=2"]), die_once)
        assert summary.epoch == 2
        assert "worker 1 lost; restarting from the last checkpoint (1 of 3)" in capsys.readouterr().out
        self.check_that_workers_know_of_each_other(tmp_path)

    def check_that_workers_know_of_each_other(self, tmp_path: Path) -> None:
        facts = [json.loads((tmp_path / f"facts-{rank}.json").read_text()) for rank in (0, 1)]
        configs = [json.loads(fact["tf_config"]) for fact in facts]
        assert [config["task"] for config in configs] == [{"type": "worker", "index": rank} for rank in (0, 1)]
        assert configs[0]["cluster"] == configs[1]["cluster"]
        assert len(set(configs[0]["cluster"]["worker"])) == 2
        assert all(fact["legacy_keras"] is None for fact in facts)

    def test_a_users_mistake_found_by_one_worker_ends_the_run_at_once(self, recipe: Recipe, tmp_path: Path) -> None:
        def fail(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
            count_attempt(recipe, world)
            if world.rank == 0:
                time.sleep(60.0)  # as in a collective that the other worker never joins
            raise UserError("data.x: mend it")

        with pytest.raises(UserError, match=r"^data\.x: mend it$"):
            train_run.launch(override(recipe, ["cluster.workers=2"]), fail)
        assert (tmp_path / "attempts-1").stat().st_size == 1

    @pytest.mark.slow  # two launches; tests/runs/test_ownership.py has the rule itself
    def test_a_run_whose_folder_a_later_driver_claims_ends_with_a_sentence_and_writes_no_more(
        self, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(supervisor, "LOOK_AT_OWNER_EVERY_S", 0.5)
        for train in (loses_its_folder, dies_in_anothers_folder):
            with pytest.raises(TakenOverError, match=r"test is trained by another process by now, which began later; "):
                train_run.launch(recipe, train)
            assert len((tmp_path / "test" / "owner").read_bytes()) == 32, "the other driver's, which has no chief yet"
        ends = [attempt.end for attempt in goodput.read(str(tmp_path / "test"), Storage()).attempts]
        assert ends == ["", ""], "it was not written any more"

    def test_a_worker_that_keeps_dying_ends_the_run_with_one_message(self, recipe: Recipe) -> None:
        def die(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
            os._exit(1)

        with pytest.raises(
            RunError, match=r"^worker 0 lost, after 0 restarts without a new checkpoint \(cluster.max_failures\)"
        ):
            train_run.launch(override(recipe, ["cluster.max_failures=0"]), die)

    def test_ctrl_c_stops_the_workers(self, recipe: Recipe, tmp_path: Path) -> None:
        def wait(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
            Path(recipe.run.storage, "pid").write_text(str(os.getpid()))
            time.sleep(600.0)
            return summary_of(recipe)

        def interrupt() -> None:
            while not (tmp_path / "pid").exists():
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)

        handler = signal.getsignal(signal.SIGINT)
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            train_run.launch(recipe, wait)
        assert signal.getsignal(signal.SIGINT) is handler
        worker = Path("/proc", (tmp_path / "pid").read_text())
        wait_until(lambda: not worker.exists())

    def test_sigterm_lets_the_workers_save_and_leave(
        self, recipe: Recipe, until_read: Callable[[], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        def ask_to_end() -> None:
            until_read()
            os.kill(os.getpid(), signal.SIGTERM)

        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        threading.Thread(target=ask_to_end, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            train_run.launch(recipe, until_asked)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        shown = capsys.readouterr().out
        assert "stopping: a checkpoint is saved first" in shown
        assert "saved at step 7" in shown
        [attempt] = goodput.read(recipe.run.folder, Storage(recipe.storage)).attempts
        assert (attempt.end, attempt.step, attempt.saved_step, attempt.steps_s) == ("stopped", 7, 7, 1.5)

    @pytest.mark.slow  # 40 s
    def test_a_worker_that_ends_no_step_is_named_and_the_run_goes_on(
        self, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def sleep_once(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
            attempt = count_attempt(recipe, world)
            train_worker.OTHERS_SPEAK_WITHIN_S = 15.0  # in this process alone; the other's may be slow
            driver.beat()
            while not all((tmp_path / f"attempts-{rank}").exists() for rank in (0, 1)):
                time.sleep(0.05)
                driver.beat()
            if attempt == 1:
                (sleep_for_ever if world.rank == 1 else wait_in_tensorflow)()
            return summary_of(recipe, epoch=attempt)

        fields = ["cluster.workers=2", "cluster.stuck_after_s=10", "storage.deadline_s=1"]
        assert train_run.launch(override(recipe, fields), sleep_once).epoch == 2
        shown = capsys.readouterr().out
        assert "worker 1 stuck at launch/test_train_run.py" in shown
        assert "in sleep_for_ever; restarting from the last checkpoint (1 of 3)" in shown
        [stacks] = sorted((tmp_path / "test/stuck").glob("worker-1-*.txt"))
        assert "sleep_for_ever" in stacks.read_text()

    @pytest.mark.slow  # 15 s
    def test_a_frozen_worker_whose_peers_go_on_is_named_by_what_ray_found(
        self, recipe: Recipe, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def freeze_once(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
            attempt = count_attempt(recipe, world)
            if attempt == 1 and world.rank == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            while attempt == 1:  # so no watchdog has anything to say
                driver.beat()
                time.sleep(0.1)
            return summary_of(recipe, epoch=attempt)

        fields = ["cluster.workers=2", "cluster.stuck_after_s=5", "storage.deadline_s=1"]
        assert train_run.launch(override(recipe, fields), freeze_once).epoch == 2
        shown = capsys.readouterr().out
        assert "worker 1 gives no answer; restarting from the last checkpoint (1 of 3)" in shown

    @pytest.mark.slow
    def test_a_range_of_workers_grows_when_there_is_room(
        self, recipe: Recipe, until_read: Callable[[], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group

        def until_two(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
            if world.workers == 1:
                return until_asked(recipe, world, driver)
            return summary_of(recipe, epoch=world.workers)

        taken = placement_group([{"CPU": 3}])
        ray.get(taken.ready())

        def make_room() -> None:
            until_read()
            remove_placement_group(taken)

        threading.Thread(target=make_room, daemon=True).start()
        fields = ["cluster.workers=[1, 2]", "cluster.grow_after_s=2"]
        assert train_run.launch(override(recipe, fields), until_two).epoch == 2
        shown = capsys.readouterr().out
        assert "room for 1 more: a checkpoint is saved" in shown
        assert "saved at step 7; going on from there" in shown
        first, second = goodput.read(recipe.run.folder, Storage(recipe.storage)).attempts
        assert (first.workers, first.end, second.workers, second.end) == (1, "room for more workers", 2, "done")

    def test_more_than_the_cluster_has_is_refused_at_once(self, recipe: Recipe) -> None:
        with pytest.raises(UserError, match=r"1 worker with 1 CPU and 1 GPU each.* has 1 node with 4 CPUs and 0 GPUs"):
            train_run.launch(override(recipe, ["cluster.gpus_per_worker=1"]), write_facts)
        with pytest.raises(UserError, match=r"lower cluster.workers or cluster.cpus_per_worker"):
            train_run.launch(override(recipe, ["cluster.cpus_per_worker=3", "cluster.workers=2"]), write_facts)

    def test_resources_that_never_become_free_are_said_to_be_missing_and_end_in_a_plain_message(
        self, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group

        monkeypatch.setattr(supervisor, "SAY_WHAT_IS_MISSING_EVERY_S", 0.5)
        taken = placement_group([{"CPU": 4}])
        ray.get(taken.ready())
        impatient = override(recipe, ["cluster.start_timeout_s=4", "cluster.max_failures=1"])
        try:
            with pytest.raises(
                UserError, match=r"cluster.start_timeout_s: no room for 1 worker with 1 CPU each within 4"
            ):
                train_run.launch(impatient, write_facts)
        finally:
            remove_placement_group(taken)
        shown = capsys.readouterr().out
        assert "waiting for 1 worker with 1 CPU each: room for 1 worker is missing, with 0 CPUs free on 1 node" in shown

    def test_a_dry_run_says_what_a_run_would_do_and_writes_nothing(self, recipe: Recipe, tmp_path: Path) -> None:
        lines = train_run.dry_run(override(recipe, ["cluster.workers=2", "train.epochs=3"]))
        text = "\n".join(lines)
        assert "pictures  9 to train on, 3 to validate on" in text
        assert "steps     3 an epoch, 9 in 3 epochs" in text
        assert "batch     4 = 2 workers x 1 replica x 1 pass x 2 pictures" in text
        assert "cluster   1 node with 4 CPUs and 0 GPUs" in text
        assert not (tmp_path / "test").exists()


class TestPlainMessages:
    """What becomes of Ray Train's exceptions; without Ray."""

    def test_a_bug_reaches_the_user_with_the_workers_traceback(self, recipe: Recipe) -> None:
        told = WorkerError("KeyError: 'x'", "Traceback ...\nKeyError: 'x'", False)
        with pytest.raises(RuntimeError, match=r"(?s)^Traceback.*KeyError: 'x'$"):
            raise train_run.plain(ControllerError(told), recipe, "")

    def test_a_machine_that_runs_out_of_memory_is_named_with_what_helps(self, recipe: Recipe) -> None:
        """Ray's monitor ends a worker before the kernel would end any process; the polling of it then fails."""
        ended = WorkerHealthCheckFailedError("a worker's health check failed", OutOfMemoryError("15.1 of 16 GB used"))
        error = WorkerGroupError("lost", {0: RuntimeError("its peer is gone"), 1: ended})
        told = train_run.told_of(error, {}, 2)
        assert told == "worker 1 failed (its machine was running out of memory, and Ray ended it)"
        plain = train_run.plain(error, recipe, told)
        assert isinstance(plain, RunError)
        assert str(plain) == (
            f"{told}, after 3 restarts without a new checkpoint (cluster.max_failures); run fewer workers on a "
            "machine, or lower data.cache_bytes or data.read_ahead_bytes; the same command goes on from the last "
            "checkpoint"
        )
        assert not comes_again(pickle.loads(pickle.dumps(train_run.causes_of(error)[1])))

    @pytest.mark.parametrize("stuck", [{}, {0: Stuck(10.0, "eager/execute.py:52 in quick_execute", True, "")}])
    def test_a_frozen_worker_is_named_whether_ray_or_the_others_watchdogs_notice_it_first(
        self, recipe: Recipe, stuck: dict[int, Stuck]
    ) -> None:
        hangs = WorkerHealthCheckTimeoutError("A worker health check has been hanging for 10.50 seconds.")
        peer = WorkerError("UnavailableError: Socket closed", "trace", True)
        for failures in ({1: hangs}, {0: peer, 1: hangs}, {0: RuntimeError("its process died"), 1: hangs}):
            error = WorkerGroupError("lost", failures)
            told = train_run.told_of(error, supervisor.culprits(stuck, 2), 2)
            assert told == "worker 1 gives no answer"
            assert isinstance(train_run.plain(error, recipe, told), RunError)
            assert not any(map(comes_again, train_run.causes_of(error).values()))

    def test_a_fault_of_storage_that_outlived_the_restarts_keeps_its_message(self, recipe: Recipe) -> None:
        fault = StorageError("s3://bucket/key: no answer in 120 s")
        wrapped = WorkerGroupError("lost", {1: UserExceptionWithTraceback(fault, "trace")})
        with pytest.raises(StorageError, match=r"^s3://bucket/key: no answer in 120 s$"):
            raise train_run.plain(wrapped, recipe, "")

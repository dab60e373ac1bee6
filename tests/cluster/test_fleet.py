"""Actors that work through tasks, really started, really killed; without TensorFlow."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from segtrain.cluster.fleet import TASKS_AT_ONCE, work_through
from segtrain.config import ClusterConfig
from segtrain.errors import RunError, StorageError, UserError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

Worker = Callable[[int], int]


def square() -> Worker:
    return lambda task: task * task


def run(
    tasks: range, make_worker: Callable[[], Worker], *, actors: int | None = None, **asked: float
) -> dict[int, int]:
    """The results by task; a task that comes twice fails the test."""
    results: dict[int, int] = {}

    def keep(task: int, result: int) -> None:
        assert task not in results
        results[task] = result

    work_through(tasks, make_worker, ClusterConfig(**asked), keep, actors=actors)  # type: ignore[arg-type]
    return results


def times(folder: Path, task: int) -> int:
    """How many times a task has been begun, this time included."""
    mark = folder / f"task-{task}"
    with mark.open("a") as file:
        file.write("x")
    return mark.stat().st_size


def test_every_task_comes_back_once_from_workers_that_are_built_once(tmp_path: Path) -> None:
    def make() -> Worker:
        (tmp_path / f"built-{time.monotonic_ns()}").touch()
        assert os.environ["TF_NUM_INTRAOP_THREADS"] == "2"
        return square()

    assert run(range(20), make, cpus_per_worker=2) == {task: task * task for task in range(20)}
    assert 1 <= len(list(tmp_path.glob("built-*"))) <= 2, "4 CPUs hold two workers of 2"
    assert run(range(0), make) == {}


def test_an_actor_works_at_several_tasks_at_once_and_its_warnings_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Worker:
        import logging
        import threading

        together = threading.Barrier(TASKS_AT_ONCE)

        def work(task: int) -> int:
            together.wait(timeout=300.0)
            logging.getLogger("segtrain.dataset.reader").warning("left out: %d", task)
            return task

        return work

    tasks = range(2 * TASKS_AT_ONCE)
    assert len(run(tasks, make, actors=1)) == len(tasks)
    assert {f"left out: {task}" for task in tasks} <= {record.message for record in caplog.records}


def test_what_a_killed_actor_had_not_finished_is_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Worker:
        def work(task: int) -> int:
            if task == 3 and times(tmp_path, task) == 1:
                (tmp_path / "pid").write_text(str(os.getpid()))
                time.sleep(60.0)
            times(tmp_path, task) if task != 3 else None
            return task

        return work

    import threading

    def kill() -> None:
        pid = tmp_path / "pid"
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.05)
        os.kill(int(pid.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert run(range(8), make, actors=2) == {task: task for task in range(8)}
    killer.join()
    assert times(tmp_path, 3) == 3, "begun twice, and counted here"
    pid = (tmp_path / "pid").read_text()
    assert f"worker process {pid} died" in caplog.text
    assert "(1 of 3)" in caplog.text


def test_workers_that_die_again_and_again_end_it_with_one_message() -> None:
    def make() -> Worker:
        return lambda task: os._exit(1)

    with pytest.raises(RunError, match=r"^a worker died, after 1 others were started again \(cluster.max_failures\)"):
        run(range(4), make, actors=1, max_failures=1)


def test_a_users_mistake_ends_it_at_once_and_a_fault_of_storage_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def mistaken() -> Worker:
        raise UserError("model.x: mend it")

    with pytest.raises(UserError, match=r"^model\.x: mend it$"):
        run(range(4), mistaken, actors=1)

    def make() -> Worker:
        def work(task: int) -> int:
            if times(tmp_path, task) < 3:
                raise StorageError(f"s3://bucket/{task}: no answer")
            return task

        return work

    assert run(range(1), make) == {0: 0}
    assert "s3://bucket/0: no answer; done again (2 of 3)" in caplog.text
    with pytest.raises(StorageError, match="no answer"):
        run(range(5, 6), make, max_failures=1)


def test_a_bug_in_a_worker_comes_with_its_own_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)^Traceback.*AttributeError"):
        run(range(1), lambda: lambda task: task.nothing)  # type: ignore[attr-defined]


def test_more_than_the_cluster_can_hold_is_refused_before_anything_starts() -> None:
    with pytest.raises(UserError, match=r"1 CPU and 1 GPU each.* has 1 node with 4 CPUs and 0 GPUs"):
        run(range(1), square, gpus_per_worker=4)
    with pytest.raises(UserError, match=r"cluster\.cpus_per_worker"):
        run(range(1), square, cpus_per_worker=5)


def test_resources_that_never_become_free_end_in_a_plain_message() -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    taken = placement_group([{"CPU": 4}])
    ray.get(taken.ready())
    try:
        with pytest.raises(UserError, match=r"^cluster.start_timeout_s: no room for 1 worker with 1 CPU each within 1"):
            run(range(1), square, start_timeout_s=1.0)
    finally:
        remove_placement_group(taken)

"""Calls side by side, on threads and on Ray."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from segtrain.cluster.fan_out import fan_out, on_ray, on_threads
from segtrain.errors import RunError, UserError
from tests.support.waiting import wait_until


def double(number: int) -> int:
    return 2 * number


def refuse(number: int) -> int:
    raise UserError(f"{number} is refused")


def die_until(folder: Path, deaths: int) -> int:
    """Kill the process that runs this, `deaths` times."""
    before = len(list(folder.iterdir()))
    if before < deaths:
        (folder / str(before)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return before


def test_threads_call_once_for_each_and_raise_the_first_error() -> None:
    assert sorted(on_threads(double, [(number,) for number in range(50)])) == list(range(0, 100, 2))
    before = threading.active_count()
    with pytest.raises(UserError, match="is refused"):
        list(on_threads(refuse, [(number,) for number in range(50)]))
    assert threading.active_count() == before


def test_few_pictures_are_for_threads() -> None:
    with fan_out(10, parallel=False, is_local=True) as side_by_side:
        assert side_by_side is on_threads


@pytest.mark.ray
def test_a_task_whose_worker_died_is_done_again_and_in_the_end_given_up(ray_session: str, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("once", "always")]
    for folder in folders:
        folder.mkdir()
    calls: Sequence[tuple[Path, int]] = [(folders[0], 1)]
    assert list(on_ray(die_until, calls)) == [1]
    with pytest.raises(RunError, match="run the same command again to go on"):
        list(on_ray(die_until, [(folders[1], 99)]))
    assert len(list(folders[1].iterdir())) == 4


def fail_first(folder: Path, number: int) -> None:
    """The first task fails, and those beside it go on until some time after."""
    failed = folder / "failed"
    if number == 0:
        failed.touch()
        raise UserError("first")
    wait_until(failed.exists)
    time.sleep(0.2)
    (folder / str(number)).touch()


@pytest.mark.ray
def test_after_an_error_no_ray_task_is_under_way(ray_session: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="first"):
        list(on_ray(fail_first, [(tmp_path, number) for number in range(20)]))
    there = len(list(tmp_path.iterdir()))
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) == there < 20

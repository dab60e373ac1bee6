"""What a worker's training function is given: a line to the driver's mailbox, and an end if it is stuck."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import WorkerCrashedError

from segtrain.cluster.watchdog import Stuck
from segtrain.launch import train_worker
from segtrain.launch.mailbox import Mailbox, StuckWorker
from segtrain.runs.status import Progress
from tests.support.waiting import wait_until

pytestmark = pytest.mark.ray

STUCK = Stuck(30.0, "loop.py:1 in wait", False, "stacks of its threads")


@pytest.fixture
def mailbox(ray_session: str) -> Iterator[Any]:
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
    yield mailbox
    ray.kill(mailbox)


def told(mailbox: Any) -> list[Any]:
    return [message for _, message in ray.get(mailbox.take.remote(0))]


def test_of_steps_some_are_told_and_an_epochs_last_and_all_else_always(
    mailbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_worker, "TELL_EVERY_S", 1e9)
    tell = train_worker._teller(mailbox)
    moments = [Progress("training", 1, 2, step, 4) for step in range(1, 5)]
    moments += [Progress("validating", 1, 2, 4, 4), Progress("saved", 1, 2, 4, 4)]
    for moment in moments:
        tell(moment)
        ray.get(mailbox.wants_to_leave.remote())  # it has arrived
    assert [(moment.phase, moment.step) for moment in told(mailbox)] == [
        ("training", 4),
        ("validating", 4),
        ("saved", 4),
    ]


def test_a_worker_learns_that_it_is_to_leave(mailbox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_worker, "ASK_EVERY_S", 0.05)
    with train_worker._asking(mailbox) as wants_to_leave:
        assert not wants_to_leave()
        ray.get(mailbox.ask_to_leave.remote())
        wait_until(wants_to_leave)


def test_a_worker_that_is_stuck_says_where_and_its_process_ends(mailbox: Any) -> None:
    @ray.remote(max_retries=0)
    def stick(mailbox: Any) -> None:
        train_worker._ending(mailbox, 1)(STUCK)

    with pytest.raises(WorkerCrashedError):
        ray.get(stick.remote(mailbox))
    assert told(mailbox) == [StuckWorker(1, STUCK)]

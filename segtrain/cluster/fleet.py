"""Ray actors that work through tasks, as many at once as the cluster holds.

Each actor builds its worker once and is given several tasks at a time, so that the reading of one overlaps the
computing of another. What an actor that died had not finished is done again by another one.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from segtrain.cluster import nodes
from segtrain.cluster.capacity import check_offer, needs
from segtrain.cluster.failures import WorkerError, comes_again, portable
from segtrain.cluster.log_forwarding import forward_warnings
from segtrain.config import ClusterConfig
from segtrain.errors import RunError, UserError
from segtrain.process import before_tensorflow

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_AT_ONCE = 3
"""Of an actor's tasks one computes, one reads, and one is finished off."""
LOOK_EVERY_S = 1.0
MOST_UNKNOWN = 64
"""Most actors that are asked for where an autoscaler does not tell how many it has room for."""


def work_through(
    tasks: Sequence[Task],
    make_worker: Callable[[], Callable[[Task], Result]],
    asked: ClusterConfig,
    on_result: Callable[[Task, Result], None],
    *,
    actors: int | None = None,
) -> None:
    """Call what `make_worker` returns for every task, in Ray actors, and `on_result(task, result)` here, as they come.

    - `make_worker` is pickled and called once in each actor, where it may import TensorFlow. It finds
      `asked.cpus_per_worker` threads and the GPU that Ray gave to the actor. What it returns is called by
      `TASKS_AT_ONCE` threads at once.
    - An actor has one GPU at most: a worker of several GPUs becomes several actors. There are `actors` of them, or as
      many as the cluster holds if it is None, never more than that or than tasks.
    - Tasks and results are small values.
    - A task is done again if its actor died, or if a fault of storage or of memory ended it. `on_result` hears of every
      task exactly once.
    - The caller has opened `cluster.connection()`. No actor is left when this returns or raises.

    It raises:

    - a worker's `UserError`, `DataError` or `StorageError`, and RuntimeError with its traceback for a bug;
    - `UserError` if the cluster can never hold an actor, or has no room for one within `asked.start_timeout_s`;
    - `RunError` if actors died more often than `asked.max_failures`;
    - KeyboardInterrupt on Ctrl-C and SIGTERM.
    """
    if not tasks:
        return
    each = _with_one_device(asked)
    count = min(_room(each), len(tasks), actors or len(tasks))
    crew = _Crew(make_worker, each, tasks, on_result)
    try:
        crew.start(count)
        while crew.is_busy():
            crew.deal()
            crew.settle()
    except SystemExit:  # which Ray raises on SIGTERM; it ends the work like Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        crew.end()


def _with_one_device(asked: ClusterConfig) -> ClusterConfig:
    """What one actor asks for: one of the worker's GPUs, and the share of its CPUs that goes with that."""
    gpus = max(1, asked.gpus_per_worker)
    one = {"cpus_per_worker": max(1, asked.cpus_per_worker // gpus), "gpus_per_worker": min(1, asked.gpus_per_worker)}
    return asked.model_copy(update={"workers": 1, **one})


def _room(each: ClusterConfig) -> int:
    """How many actors the cluster can hold. Raises UserError where it is not even one."""
    offer = nodes.offer()
    check_offer(each, offer)
    room = offer.room(each)
    return MOST_UNKNOWN if room is None else room


@dataclass(frozen=True)
class _Outcome:
    """What an actor made of a task."""

    result: Any = None
    error: Exception | None = None
    notes: Sequence[str] = ()
    """What segtrain logged in the actor, from warnings on, since its last outcome."""


class _Actor:
    """In a process of its own: builds the worker when the first task comes, and calls it."""

    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]], threads: int) -> None:
        before_tensorflow()
        # TensorFlow reads these when it is first used; a core for each actor's forward pass is what Ray reckons with.
        os.environ.update(TF_NUM_INTRAOP_THREADS=str(threads), TF_FORCE_GPU_ALLOW_GROWTH="true")
        self._make_worker = make_worker
        self._worker: Callable[[Any], Any] | None = None
        self._building = threading.Lock()
        self._notes: deque[str] = deque()
        forward_warnings(self._notes.append)

    def process(self) -> int:
        """The id of the process."""
        return os.getpid()

    def run(self, task: Any) -> _Outcome:
        try:
            with self._building:
                if self._worker is None:
                    self._worker = self._make_worker()
            result = self._worker(task)
        except Exception as error:
            return _Outcome(error=portable(error), notes=self._take_notes())
        return _Outcome(result, notes=self._take_notes())

    def _take_notes(self) -> list[str]:
        notes = []
        while self._notes:
            notes.append(self._notes.popleft())
        return notes


@dataclass(eq=False)
class _Member(Generic[Task]):
    """An actor as the driver sees it."""

    handle: Any
    process: int | None = None
    """None until it has been started."""
    tasks: list[Task] = field(default_factory=list)


class _Crew(Generic[Task, Result]):
    """The actors of one call, what they are doing, and what is still to do."""

    def __init__(
        self,
        make_worker: Callable[[], Callable[[Task], Result]],
        each: ClusterConfig,
        tasks: Sequence[Task],
        on_result: Callable[[Task, Result], None],
    ) -> None:
        self._make_worker = ray.put(make_worker)  # once: networks may be part of it
        self._each = each
        self._on_result = on_result
        self._waiting = deque(tasks)
        self._members: list[_Member[Task]] = []
        self._calls: dict[Any, tuple[_Member[Task], Task | None]] = {}
        """What is under way; the task is None where an actor is being started."""
        self._failures = 0
        self._give_up_at = time.monotonic() + each.start_timeout_s

    def end(self) -> None:
        """Leave no actor."""
        for member in self._members:
            ray.kill(member.handle)

    def is_busy(self) -> bool:
        """Whether a task is waiting or under way."""
        return bool(self._waiting) or any(member.tasks for member in self._members)

    def start(self, count: int) -> None:
        """Ask Ray for `count` more actors."""
        actor: Any = ray.remote(_Actor)
        cpus, gpus = self._each.cpus_per_worker, self._each.gpus_per_worker
        configured = actor.options(num_cpus=cpus, num_gpus=gpus, max_concurrency=TASKS_AT_ONCE, max_restarts=0)
        for _ in range(count):
            member: _Member[Task] = _Member(configured.remote(self._make_worker, cpus))
            self._members.append(member)
            self._calls[member.handle.process.remote()] = member, None

    def deal(self) -> None:
        """Give tasks to the actors that are up, those with the fewest first; the last ones are shared out evenly."""
        unfinished = len(self._waiting) + sum(len(member.tasks) for member in self._members)
        share = min(TASKS_AT_ONCE, -(-unfinished // len(self._members)))
        up = [member for member in self._members if member.process is not None]
        while self._waiting and up:
            member = min(up, key=lambda member: len(member.tasks))
            if len(member.tasks) >= share:
                return
            task = self._waiting.popleft()
            member.tasks.append(task)
            self._calls[member.handle.run.remote(task)] = member, task

    def settle(self) -> None:
        """Wait, a second at most, and take in what has come."""
        finished, _ = ray.wait(list(self._calls), timeout=LOOK_EVERY_S)
        for call in finished:
            if call not in self._calls:  # of an actor that another call has shown to be dead
                continue
            member, task = self._calls.pop(call)
            try:
                value = ray.get(call)
            except RayTaskError:
                raise  # what the worker returned cannot be pickled
            except RayError:
                self._replace(member)
                continue
            if task is None:
                member.process = value
            else:
                member.tasks.remove(task)
                self._take(task, value)
        if time.monotonic() > self._give_up_at and not any(member.process for member in self._members):
            raise UserError(
                f"cluster.start_timeout_s: no room for {needs(self._each)} within "
                f"{self._each.start_timeout_s:g} s on {nodes.offer()}, some of it in use; "
                f"wait, raise the deadline, or ask for less"
            )

    def _take(self, task: Task, outcome: _Outcome) -> None:
        for note in outcome.notes:
            logger.warning("%s", note)
        error = outcome.error
        if error is None:
            self._on_result(task, outcome.result)
            return
        self._failures += 1
        if comes_again(error) or self._failures > self._each.max_failures:
            raise RuntimeError(error.trace) if isinstance(error, WorkerError) else error
        self._waiting.append(task)
        logger.warning("%s; done again (%d of %d)", error, self._failures, self._each.max_failures)

    def _replace(self, member: _Member[Task]) -> None:
        """Take back what a dead actor had under way, and start another one."""
        self._members.remove(member)
        self._calls = {call: about for call, about in self._calls.items() if about[0] is not member}
        self._waiting.extendleft(reversed(member.tasks))
        ray.kill(member.handle)
        self._failures += 1
        limit = self._each.max_failures
        if self._failures > limit:
            raise RunError(
                f"a worker died, after {limit} others were started again (cluster.max_failures); what is finished "
                f"stays, and the same command goes on"
            )
        logger.warning(
            "worker process %s died; its unfinished tasks (%d) are done again (%d of %d)",
            "not yet started" if member.process is None else member.process,
            len(member.tasks),
            self._failures,
            limit,
        )
        self._give_up_at = max(self._give_up_at, time.monotonic() + self._each.start_timeout_s)
        self.start(1)

"""What Ray runs in each worker of a run: the training function, with a line to the driver and a watchdog beside it."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError

from segtrain.cluster.failures import portable
from segtrain.cluster.log_forwarding import forward_warnings
from segtrain.cluster.own_gpus import VISIBLE, own_positions, visible_gpus
from segtrain.cluster.watchdog import Stuck, Watchdog
from segtrain.config import Recipe
from segtrain.launch.mailbox import Began, StuckWorker
from segtrain.runs.status import NOBODY, Driver, Left, Progress, RunSummary, World
from segtrain.storage.scratch import temporary_files_in_scratch

Train = Callable[[Recipe, World, Driver], RunSummary]

TELL_EVERY_S = 0.5
ASK_EVERY_S = 1.0
ANSWER_WITHIN_S = 5.0
OTHERS_SPEAK_WITHIN_S = 2.0
"""With the first process that ends Ray ends them all, and who has not spoken by then would be taken for frozen."""
ORPHANED_AFTER_S = 90.0
"""A worker that cannot reach its driver for these seconds ends: others have its place, and `Run` lets only these write
the run's folder. Ray itself lets a worker on a cut-off node compute for three minutes."""
STUCK_EXIT_CODE, ORPHANED_EXIT_CODE = 70, 71
"""Of a worker that its watchdog ends, and of one that is cut off."""


def work(config: dict[str, Any]) -> RunSummary | Left:
    """Call `config["train"](recipe, world, driver)`; returns what it returns, or the `Left` that it raises."""
    recipe = Recipe.from_dict(config["recipe"])
    context = ray.train.get_context()
    world = World(
        workers=context.get_world_size(),
        rank=context.get_world_rank(),
        replicas_per_worker=recipe.cluster.replicas_per_worker,
        gpus_per_worker=recipe.cluster.gpus_per_worker,
        workers_on_machine=context.get_local_world_size(),
        gpu_positions=_own_gpus() if recipe.cluster.gpus_per_worker else None,
    )
    mailbox = config["mailbox"]

    def note(line: str) -> None:
        mailbox.put.remote(f"worker {world.rank}: {line}")

    forward_warnings(note)
    mailbox.put.remote(Began(world.rank, ray.get_runtime_context().get_node_id(), socket.gethostname()))
    end_if_stuck = _ending(mailbox, world.rank)
    try:
        with (
            temporary_files_in_scratch("worker"),
            Watchdog(recipe.cluster.stuck_after_s, end_if_stuck, first_s=recipe.cluster.first_step_s) as watchdog,
            _asking(mailbox) as wants_to_leave,
        ):
            tell = _teller(mailbox) if world.is_chief else NOBODY.tell
            driver = Driver(tell, wants_to_leave, watchdog.beat, config["claim"], note)
            summary: RunSummary = config["train"](recipe, world, driver)
            return summary
    except Left as left:
        return left
    except Exception as error:
        raise portable(error, gpus=world.gpus_per_worker > 0) from None


def _own_gpus() -> tuple[int, ...]:
    """Positions of this worker's GPUs among those that its process sees, which it sets before TensorFlow looks."""
    assigned = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    visible = visible_gpus(os.environ.get(VISIBLE), assigned)
    if visible is not None:
        os.environ[VISIBLE] = visible
    return own_positions(visible, assigned)


def _teller(mailbox: Any) -> Callable[[Progress], None]:
    """Sends progress without waiting for an answer; of moments within an epoch two a second, and its last."""
    told_at = 0.0

    def tell(progress: Progress) -> None:
        nonlocal told_at
        now = time.monotonic()
        passing = progress.phase == "training" and progress.step < progress.steps_per_epoch
        if not passing or now - told_at >= TELL_EVERY_S:
            told_at = now
            mailbox.put.remote(progress)

    return tell


@contextmanager
def _asking(mailbox: Any) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether the driver wants this worker to leave; a thread keeps asking.

    A worker that gets no answer for `ORPHANED_AFTER_S` is cut off, and ends itself.
    """
    leave, done = threading.Event(), threading.Event()

    def ask() -> None:
        answered_at = time.monotonic()
        while not done.wait(ASK_EVERY_S):
            with suppress(RayError):
                if ray.get(mailbox.wants_to_leave.remote(), timeout=ANSWER_WITHIN_S):
                    leave.set()
                answered_at = time.monotonic()
            if time.monotonic() - answered_at > ORPHANED_AFTER_S:
                print(f"no answer from the driver for {ORPHANED_AFTER_S:.0f} s", file=sys.stderr, flush=True)
                os._exit(ORPHANED_EXIT_CODE)

    asker = threading.Thread(target=ask, name="segtrain-asking", daemon=True)
    asker.start()
    try:
        yield leave.is_set
    finally:
        done.set()


def _ending(mailbox: Any, rank: int) -> Callable[[Stuck], None]:
    """Tells the driver where this worker is stuck, and ends its process: nothing less ends a thread that is stuck."""

    def end(stuck: Stuck) -> None:
        try:
            print(f"worker {rank} is stuck\n{stuck.stacks}", file=sys.stderr, flush=True)
            with suppress(RayError):
                ray.get(mailbox.put.remote(StuckWorker(rank, stuck)), timeout=ANSWER_WITHIN_S)
            time.sleep(OTHERS_SPEAK_WITHIN_S)
        finally:
            os._exit(STUCK_EXIT_CODE)

    return end

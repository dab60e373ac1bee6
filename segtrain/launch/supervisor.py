"""Beside a group of workers, in the driver: shows what they tell, keeps the goodput record, asks them to leave in time.

They are asked to leave where the user wants to stop, where another driver has taken the run's folder, where a machine
under one of them is about to go, and where there is room for more of them.
"""

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, Self

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segtrain.cluster import nodes
from segtrain.cluster.capacity import missing, needs
from segtrain.cluster.watchdog import Stuck
from segtrain.config import Recipe
from segtrain.errors import TakenOverError
from segtrain.launch.mailbox import Began, Mailbox, StuckWorker, Told
from segtrain.launch.progress import Display, clock
from segtrain.runs.goodput import Attempt, Goodput
from segtrain.runs.ownership import RunClaim
from segtrain.runs.run_folder import RunFolder
from segtrain.runs.status import Account
from segtrain.storage.files import Storage, join

logger = logging.getLogger(__name__)

Reason = Literal["stop", "drain", "grow", "taken"]
TAKEN = "another process took the folder over"
"""How an attempt ended after which there is none of this driver's."""

LOOK_EVERY_S = 0.5
LOOK_AT_CLUSTER_EVERY_S = 2.0
LOOK_AT_OWNER_EVERY_S = 5.0
MAIL_WITHIN_S = 5.0
WRITE_EVERY_S = 10.0
"""What a driver that is killed can lose of the goodput record."""
SAY_WHAT_IS_MISSING_EVERY_S = 60.0
WATCHDOGS_SPEAK_WITHIN_S = 1.5
"""Of each other: they count from the end of the same step, and each looks every second."""


class Supervisor:
    """Of one attempt. A context manager: a thread watches from the begin of the block to its end."""

    def __init__(
        self,
        recipe: Recipe,
        display: Display,
        earlier: Goodput,
        storage: Storage,
        claim: RunClaim,
        *,
        asked_at: float,
        give_up_at: float,
        most: int,
    ) -> None:
        """`recipe` has one number of workers, of which there may be `most`.

        `asked_at` and `give_up_at`, of `time.monotonic`, are when such workers were first asked for, and how long they
        are waited for.
        """
        self.began: dict[int, Began] = {}
        """By rank, the workers whose training function has been called."""
        self.stuck: dict[int, Stuck] = {}
        """By rank, what their watchdogs have found."""
        self.account: Account | None = None
        """The chief's newest; None before the first step."""
        self.asked: Reason | None = None
        """Why the workers were asked to leave."""
        self._recipe = recipe
        self._display = display
        self._claim = claim
        self._folder = RunFolder(recipe.run.folder)
        self._files = _Files(storage, claim)
        began_at = time.time() - (time.monotonic() - asked_at)
        self._goodput = earlier.begun(Attempt(began_at=began_at, workers=recipe.cluster.max_workers))
        self._asked_at, self._give_up_at, self._most = asked_at, give_up_at, most
        self._looked_at_cluster_at = self._looked_at_owner_at = time.monotonic()
        self._minutes_said = self._minutes_waited()
        self._room_since: float | None = None
        self._stuck_since: float | None = None
        self._read = 0
        """Number of the last message that has been taken in."""
        self._asking = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="segtrain-supervisor", daemon=True)
        actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(Mailbox)
        # On this machine: it must not go with a worker's.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox: Any = actor.options(scheduling_strategy=here).remote()

    def __enter__(self) -> Self:
        self._files.put(self._folder.goodput, self._goodput.to_json())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_thread()
        ray.kill(self.mailbox)
        self._files.close()

    def on_signal(self) -> bool:
        """The user wants to stop. Returns whether the workers will save and leave by themselves.

        Without a step since they began there is nothing to save, and it may be long until there is one.
        """
        if self.account is None:
            return False
        self._ask("stop", "stopping: a checkpoint is saved first; once more stops at once")
        return True

    def stop_watching(self) -> None:
        """Take in what the workers have told last, and ask nothing of them any more."""
        self._end_thread()
        with suppress(RayError):  # what a mailbox held that has died with its process is lost
            self._take_mail()

    def end(self, why: str) -> Goodput:
        """Keep how the attempt ended in the run's record. Returns the record."""
        self.stop_watching()
        self._update(why)
        self._files.put(self._folder.goodput, self._goodput.to_json())
        return self._goodput

    def _end_thread(self) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        told = ""
        written_at = time.monotonic()
        while not self._done.wait(LOOK_EVERY_S):
            try:
                self._look()
            except Exception as error:  # whatever it is, the run must not lose its supervisor over it
                if str(error) != told:
                    told = str(error)
                    logger.warning("the run cannot be watched at this moment: %s", error)
            if time.monotonic() - written_at >= WRITE_EVERY_S:
                written_at = time.monotonic()
                self._files.put(self._folder.goodput, self._goodput.to_json(), unless_busy=True)

    def _look(self) -> None:
        self._update("")
        self._take_mail()
        now = time.monotonic()
        if self.asked is None and self.account is not None:
            if now - self._looked_at_cluster_at >= LOOK_AT_CLUSTER_EVERY_S:
                self._looked_at_cluster_at = now
                self._look_at_cluster(now)
            if now - self._looked_at_owner_at >= LOOK_AT_OWNER_EVERY_S:
                self._looked_at_owner_at = now
                self._look_at_owner()
        if not self.began and self._minutes_waited() > self._minutes_said:
            self._minutes_said = self._minutes_waited()
            self._say_what_is_missing()
        if self._stuck_since is not None and now - self._stuck_since >= WATCHDOGS_SPEAK_WITHIN_S:
            self._stuck_since = None
            found = culprits(self.stuck, self._recipe.cluster.max_workers)
            self._display.note("; ".join(f"worker {rank} {what}" for rank, what in found.items()))

    def _take_mail(self) -> None:
        if self.asked is not None:  # again: a mailbox that was started anew does not know
            self.mailbox.ask_to_leave.remote()
        for number, told in ray.get(self.mailbox.take.remote(self._read), timeout=MAIL_WITHIN_S):
            self._read = number
            self._take(told)

    def _take(self, told: Told) -> None:
        if isinstance(told, str):
            self._display.note(told)
        elif isinstance(told, Began):
            self.began[told.rank] = told
            if len(self.began) == 1:
                self._change(waiting_s=time.monotonic() - self._asked_at)
        elif isinstance(told, StuckWorker):
            self.stuck[told.rank] = told.stuck
            if len(self.stuck) == 1:
                self._stuck_since = time.monotonic()
            self._keep_stacks(told)
        else:
            self.account = told.account or self.account
            self._update("")
            self._display.show(replace(told, goodput=None if told.account is None else self._goodput.share))

    def _update(self, end: str) -> None:
        """Bring the newest attempt of the record up to now."""
        seconds = time.monotonic() - self._asked_at
        changes: dict[str, Any] = {"seconds": seconds, "end": end}
        if self.account is not None:
            changes |= vars(self.account)
        elif self.began:
            changes["starting_s"] = max(seconds - self._goodput.attempts[-1].waiting_s, 0.0)
        else:
            changes["waiting_s"] = seconds
        self._change(**changes)

    def _change(self, **changes: Any) -> None:
        self._goodput = self._goodput.updated(replace(self._goodput.attempts[-1], **changes))

    def _keep_stacks(self, told: StuckWorker) -> None:
        """Leave the stacks of a stuck worker in the run's folder."""
        url = join(self._folder.stuck, f"worker-{told.rank}-{time.strftime('%Y%m%dT%H%M%S')}.txt")
        self._files.put(url, told.stuck.stacks.encode())
        self._display.note(
            f"worker {told.rank} has ended no step for {told.stuck.seconds:.0f} s; it is at {told.stuck.where} "
            f"(stacks of its threads: {url})"
        )

    def _look_at_owner(self) -> None:
        """Have the workers leave a folder that is another driver's; before they save they find so themselves."""
        try:
            self._claim.check()
        except TakenOverError as error:
            self._ask("taken", str(error))

    def _look_at_cluster(self, now: float) -> None:
        """Have the workers leave where one of their machines is to go, or there has been room for more for long."""
        asked, going = self._recipe.cluster, nodes.draining()
        hosts = sorted({began.host for began in self.began.values() if began.node_id in going})
        fewer = self._most - asked.max_workers
        more = min(nodes.room(asked), fewer) if fewer else 0
        self._room_since = (self._room_since or now) if more > 0 else None
        if hosts:
            self._ask("drain", f"{', '.join(hosts)} is about to go: a checkpoint is saved first")
        elif self._room_since is not None and now - self._room_since >= asked.grow_after_s:
            self._ask("grow", f"room for {more} more: a checkpoint is saved, and the run goes on with them")

    def _ask(self, reason: Reason, note: str) -> None:
        with self._asking:
            if self.asked is not None and reason != "stop":  # the first reason counts, but for the user's wish
                return
            self.asked = reason
        self.mailbox.ask_to_leave.remote()
        self._display.note(note)

    def _minutes_waited(self) -> int:
        return int((time.monotonic() - self._asked_at) // SAY_WHAT_IS_MISSING_EVERY_S)

    def _say_what_is_missing(self) -> None:
        asked, left_s = self._recipe.cluster, max(self._give_up_at - time.monotonic(), 0.0)
        self._display.note(
            f"waiting for {needs(asked)}: {missing(asked, nodes.free())} on {nodes.offer()}; "
            f"giving up in {clock(left_s)}"
        )


class _Files:
    """Small files of the run's folder, written one after the other in a thread of their own."""

    def __init__(self, storage: Storage, claim: RunClaim) -> None:
        self._claim = claim
        self._storage = storage
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="segtrain-files")
        self._newest: Future[None] | None = None

    def put(self, url: str, data: bytes, *, unless_busy: bool = False) -> None:
        """Begin to write; with `unless_busy` only where nothing is being written."""
        if unless_busy and self._newest is not None and not self._newest.done():
            return
        self._newest = self._writer.submit(self._write, url, data)

    def close(self) -> None:
        """Wait until all is written or has failed."""
        self._writer.shutdown(wait=True)

    def _write(self, url: str, data: bytes) -> None:
        """A file that cannot be written now is no reason to end the run; in another driver's folder none is."""
        try:
            self._claim.check()
            self._storage.write_bytes(url, data)
        except TakenOverError:
            return  # the workers, and the launch of the next ones, end with the same words
        except Exception as error:
            logger.warning("%s could not be written: %s", url, error)


def culprits(stuck: Mapping[int, Stuck], workers: int) -> dict[int, str]:
    """Rank -> what is known of it, of the workers that the others were waiting for; empty where none was stuck.

    A worker whose watchdog does not speak either is frozen, or its machine is. Else it is those that are not in
    TensorFlow, where the others wait for them; and if all are there, no one can be told from the others.
    """
    if not stuck:
        return {}
    silent = [rank for rank in range(workers) if rank not in stuck]
    if silent:
        return dict.fromkeys(silent, "gives no answer")
    busy = {rank: found for rank, found in stuck.items() if not found.in_tensorflow} or dict(stuck)
    return {rank: f"stuck at {found.where}" for rank, found in sorted(busy.items())}

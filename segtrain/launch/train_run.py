"""A recipe becomes a run: groups of workers, one after the other, until it is done.

Driver and controller never import TensorFlow; only the workers do. Whatever ends a group (a lost worker, a machine
that goes, room for more workers, too little memory), the next one goes on from the run's own newest checkpoint. An
error that would come again ends the run at once with its own message.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress

from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from segtrain.cluster import nodes
from segtrain.cluster.capacity import Offer, needs
from segtrain.cluster.failures import (
    KNOWN_ERRORS,
    MORE_HOST_MEMORY,
    DeviceMemoryError,
    FrozenWorkerError,
    HostMemoryError,
    WorkerBugError,
    WorkerError,
    comes_again,
    what_happened,
)
from segtrain.cluster.stop_signal import StopSignal
from segtrain.cluster.train_internals import (
    BASE_EXCEPTION,
    InsufficientClusterResourcesError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from segtrain.config import Recipe
from segtrain.errors import RunError, UserError
from segtrain.gpu_driver import machine_lines
from segtrain.launch.dry_run_lines import plan_lines
from segtrain.launch.preflight import PreparedRun, check_cluster, prepared
from segtrain.launch.progress import Display, RunDisplay, closing_lines
from segtrain.launch.supervisor import TAKEN, Supervisor, culprits
from segtrain.launch.train_worker import Train
from segtrain.launch.worker_group import OnGroup, run_group
from segtrain.launch.workload import fit_devices
from segtrain.memory.smaller_batch import with_smaller_batch
from segtrain.report.write import write_report
from segtrain.runs import goodput
from segtrain.runs.ownership import RunClaim, take_run
from segtrain.runs.run_folder import RunFolder
from segtrain.runs.status import Driver, Left, RunSummary, World

SETTLE_S = 5.0
"""Within these seconds after a group the cluster has its resources back, and knows of a node that is gone."""
CHOOSE_AGAIN_S = 30.0
"""Seconds after which a range of workers is counted again, where those that were asked for did not start."""


def train_with_tensorflow(recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    """The training loop; TensorFlow is imported here, in the worker."""
    from segtrain.training.loop import train

    return train(recipe, world, driver)


def launch(recipe: Recipe, train: Train = train_with_tensorflow, *, extend: bool = False) -> RunSummary:
    """Train as the recipe says, from the run's newest checkpoint if there is one, and show how it goes.

    Each worker calls `train`, which must be picklable, with its own `World`. The progress of rank 0 is shown and its
    summary returned: the scores of the best epoch. `extend` lets `train.epochs` grow over what the run's folder was
    trained for. If a device runs out of memory, it gets half the pictures at once in twice the passes, and the run
    resumes from its last checkpoint. Raises:

    - UserError before anything starts, if the data, the run's folder or the cluster does not fit;
    - the worker's own UserError, DataError or StorageError if it fails later;
    - RunError if workers were lost more than `cluster.max_failures` times in a row;
    - KeyboardInterrupt on Ctrl-C and SIGTERM, after a checkpoint.
    """
    run = prepared(recipe, extend=extend)
    recipe, storage = run.recipe, run.storage
    with closing(RunDisplay(recipe.run.progress_every_s)) as display:
        nodes.warn_of_hasty_stops(display.note)
        summary, _ = run_on(display, run, train)
    if storage.exists(RunFolder(recipe.run.folder).metrics_log):  # a training function of one's own need not keep any
        write_report(recipe.run.folder, storage)
    for line in closing_lines(summary, recipe, goodput.read(recipe.run.folder, storage)):
        display.note(line)
    return summary


def dry_run(recipe: Recipe, *, extend: bool = False) -> list[str]:
    """Lines that say what `launch` would do. Raises what `launch` would raise before anything starts."""
    return would_do(prepared(recipe, extend=extend))


def would_do(run: PreparedRun) -> list[str]:
    """`dry_run` of a run that is prepared."""
    with nodes.connection():
        offer = nodes.offer()
        check_cluster(run.recipe, offer)
    goes_on = "goes on from the folder's newest checkpoint" if run.resumes else None
    gpus = machine_lines() if run.recipe.cluster.gpus_per_worker else []
    notes = filter(None, (run.older_version, goes_on, *gpus))
    return [run.fitted.recipe.to_yaml(), *plan_lines(run.fitted, run.size, offer), *notes]


def run_on(
    display: Display, run: PreparedRun, train: Train, *, on_group: OnGroup | None = None, claim: str | None = None
) -> tuple[RunSummary, Recipe]:
    """Train a run on a display that is already open and stays so, without the lines at the end.

    - The run's folder is this driver's from now on, and another one that has it ends. With `claim` it belongs to
      whoever gives that token, which has claimed it already.
    - A sweep's trial gives `on_group`: it is called, in the controller, with the placement group of each group of
      workers that has started, and its receiver must remove it. Ray keeps it as long as the sweep's own process lives,
      even when trial and controller are gone.

    Returns the recipe too, as it was in the end: with smaller batches if a device ran out of memory.
    """
    recipe = run.recipe
    if on_group is None:
        display.note(f"{'resuming' if run.resumes else 'starting'} {recipe.run.folder}")
        if run.older_version is not None:
            display.note(run.older_version)
    if run.fitted.reasons:
        display.note(f"changed to fit cluster.device_bytes: {'; '.join(run.fitted.reasons)}")
    for line in run.size.cautions:
        display.note(line)
    with nodes.connection(), StopSignal() as stop:
        offer = nodes.offer()
        check_cluster(recipe, offer)
        token = claim or take_run(recipe.run.folder, run.storage, run.check_folder)
        with _autoscaled(recipe, offer):
            attempts = _Attempts(run, train, display, stop, on_group, token)
            summary = attempts.run()
        if stop.wanted:  # it came too late for the workers, but not for the folds or the report that would follow
            raise KeyboardInterrupt
        return summary, attempts.recipe


@contextmanager
def _autoscaled(recipe: Recipe, offer: Offer) -> Iterator[None]:
    """An autoscaler knows inside the block how many workers a range could use; of one number it learns by itself."""
    asked = recipe.cluster
    if offer.limits is None or asked.min_workers == asked.max_workers:
        yield
        return
    nodes.want(asked, asked.max_workers)
    try:
        yield
    finally:
        with suppress(RayError):  # the run's own end says more
            nodes.want(asked, 0)


class _Attempts:
    """One group of workers after the other."""

    def __init__(
        self,
        run: PreparedRun,
        train: Train,
        display: Display,
        stop: StopSignal,
        on_group: OnGroup | None,
        claim: str,
    ) -> None:
        self.recipe = run.recipe
        """As asked, with smaller batches from the first time that a device ran out of memory."""
        self._size, self._storage = run.size, run.storage
        self._train = train
        self._display = display
        self._stop = stop
        self._on_group = on_group
        self._token = claim
        self._claim = RunClaim(run.recipe.run.folder, run.storage, claim)
        self._asked_at = time.monotonic()
        self._goodput = goodput.read(run.recipe.run.folder, run.storage)
        self._failures = 0
        self._saved_step = 0

    def run(self) -> RunSummary:
        """Until a group comes to the end of the run; what each of the others ended with says how it goes on.

        Raises KeyboardInterrupt where the run was to stop, once its workers have left or failed; TakenOverError where
        another driver has the run's folder by now: whatever ended a group, the next one would take it back.
        """
        while True:
            self._claim.check()
            # Fewer workers have larger shares, which must fit their devices too.
            recipe = fit_devices(self.recipe.updated({"cluster.workers": self._workers()}), self._size).recipe
            supervisor = Supervisor(
                recipe,
                self._display,
                self._goodput,
                self._storage,
                self._claim,
                asked_at=self._asked_at,
                give_up_at=self._wait_until,
                most=self.recipe.cluster.max_workers,
            )
            with supervisor, self._stop.asking(supervisor.on_signal):
                outcome = self._run_group(recipe, supervisor)
                if not isinstance(outcome, Left | TrainingFailedError):
                    self._goodput = supervisor.end("done")
                    return outcome
                note = (
                    self._after_leaving(outcome, supervisor)
                    if isinstance(outcome, Left)
                    else self._after_failure(outcome, recipe, supervisor)
                )
            if note is not None:
                self._asked_at = time.monotonic()
                self._display.note(note)
            if self._stop.wanted:
                raise KeyboardInterrupt

    def _run_group(self, recipe: Recipe, supervisor: Supervisor) -> RunSummary | Left | TrainingFailedError:
        """What a group of workers ended with."""
        try:
            return run_group(
                recipe,
                self._train,
                supervisor.mailbox,
                claim=self._token,
                start_within_s=self._start_within_s(recipe),
                stop=self._stop,
                on_group=self._on_group,
            )
        except TrainingFailedError as error:
            return error
        except (RayActorError, OutOfMemoryError):
            supervisor.end("its controller was lost")
            # Ray gives up what the controller held when this process ends, at the latest.
            raise RunError(
                "the process that watches over the workers (Ray Train's controller) was lost; "
                "the same command goes on from the last checkpoint"
            ) from None
        except BaseException as error:
            supervisor.end("stopped" if isinstance(error, KeyboardInterrupt) else "failed")
            raise

    @property
    def _wait_until(self) -> float:
        return self._asked_at + self.recipe.cluster.start_timeout_s

    def _workers(self) -> int:
        """As many as there is room for, within the range; the cluster gets some seconds to find itself."""
        asked = self.recipe.cluster
        settled = time.monotonic() + (SETTLE_S if self._goodput.attempts else 0.0)
        while asked.min_workers < asked.max_workers:
            room = nodes.room(asked)
            if room >= asked.max_workers or time.monotonic() >= settled:
                return min(max(room, asked.min_workers), asked.max_workers)
            time.sleep(0.5)
        return asked.max_workers

    def _start_within_s(self, recipe: Recipe) -> float:
        left_s = max(self._wait_until - time.monotonic(), 1.0)
        return left_s if recipe.cluster.max_workers == self.recipe.cluster.min_workers else min(left_s, CHOOSE_AGAIN_S)

    def _after_leaving(self, left: Left, supervisor: Supervisor) -> str:
        """A line on what follows where the workers have saved and left."""
        ends = {"stop": "stopped", "drain": "a machine went", "grow": "room for more workers", "taken": TAKEN}
        self._failures, self._saved_step = 0, left.step
        self._goodput = supervisor.end(ends[supervisor.asked or "stop"])
        return f"saved at step {left.step}" + ("" if self._stop.wanted else "; going on from there")

    def _after_failure(self, error: TrainingFailedError, recipe: Recipe, supervisor: Supervisor) -> str | None:
        """What follows a failure, in a line; None where the group is still waited for. Raises what ends the run."""
        if _could_not_start(error) and time.monotonic() + 1.0 < self._wait_until:
            return None  # a range of workers is counted again, and the attempt that did not begin is none
        supervisor.stop_watching()
        causes = causes_of(error)
        workers = recipe.cluster.max_workers
        told = told_of(error, culprits(supervisor.stuck, workers), workers)
        self._goodput = supervisor.end(told)
        shortage = next((cause for cause in causes.values() if isinstance(cause, DeviceMemoryError)), None)
        if shortage is not None:
            smaller, change = with_smaller_batch(recipe, shortage.headline, scoring=shortage.scoring)
            self.recipe = smaller.updated({"cluster.workers": self.recipe.cluster.workers})
            return f"{change}; restarting from the last checkpoint"
        final = any(
            isinstance(cause, InsufficientClusterResourcesError) or comes_again(cause) for cause in causes.values()
        )
        if final or _could_not_start(error):
            raise plain(error, recipe, told) from None
        saved = 0 if supervisor.account is None else supervisor.account.saved_step
        self._failures = 1 if saved > self._saved_step else self._failures + 1
        self._saved_step = max(saved, self._saved_step)
        most = self.recipe.cluster.max_failures
        if self._failures > most:
            raise plain(error, recipe, told) from None
        if self._stop.wanted:
            return f"{told}; the same command goes on from the last checkpoint"
        return f"{told}; restarting from the last checkpoint ({self._failures} of {most})"


def _could_not_start(error: TrainingFailedError) -> bool:
    return isinstance(error, ControllerError) and isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)


def causes_of(error: TrainingFailedError) -> dict[int, Exception]:
    """Rank -> the worker's exception without what Ray Train wraps around it; of the controller's own it is rank 0."""
    if isinstance(error, WorkerGroupError):
        return {rank: _cause(failure) for rank, failure in error.worker_failures.items()}
    return {0: error.controller_failure if isinstance(error, ControllerError) else error}


def _cause(failure: Exception) -> Exception:
    cause = getattr(failure, BASE_EXCEPTION, failure)
    if isinstance(cause, WorkerHealthCheckFailedError) and isinstance(cause.health_check_failure, OutOfMemoryError):
        return HostMemoryError()
    return FrozenWorkerError() if isinstance(cause, WorkerHealthCheckTimeoutError) else cause


def told_of(error: TrainingFailedError, stuck: Mapping[int, str], workers: int) -> str:
    """One clause on what ended a group of this number of workers."""
    if isinstance(error, ControllerError):
        headline = str(error.controller_failure).partition("\n")[0][:200]
        return f"the workers could not be started ({headline})"
    return what_happened(causes_of(error), workers, stuck)


def plain(error: TrainingFailedError, recipe: Recipe, told: str) -> Exception:
    """The exception that tells the user what went wrong, from what Ray Train makes of it."""
    asked = recipe.cluster
    causes = causes_of(error)
    if _could_not_start(error):
        return UserError(
            f"cluster.start_timeout_s: no room for {needs(asked)} within {asked.start_timeout_s:g} s "
            f"on {nodes.offer()}, some of it in use; wait, raise the deadline, or ask for less"
        )
    for cause in causes.values():
        if isinstance(cause, InsufficientClusterResourcesError):
            return UserError(f"the cluster can never hold {needs(asked)}; it has {nodes.offer()}")
        if isinstance(cause, KNOWN_ERRORS):
            return cause
        if isinstance(cause, WorkerError) and not cause.may_pass:
            return WorkerBugError(cause.headline, cause.trace)
    traces = "".join(f"\n{cause.trace}" for cause in causes.values() if isinstance(cause, WorkerError) and cause.trace)
    short = any(isinstance(cause, HostMemoryError) for cause in causes.values())
    return RunError(
        f"{told}, after {asked.max_failures} restarts without a new checkpoint (cluster.max_failures); "
        f"{f'{MORE_HOST_MEMORY}; ' if short else ''}the same command goes on from the last checkpoint{traces}"
    )

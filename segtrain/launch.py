"""A recipe becomes a Ray Train run: the only module that knows Ray Train.

Driver and controller never import TensorFlow; only the workers do. A worker that is lost is started again and goes on
from the run's own newest checkpoint (Ray's checkpoints are not used), and an error that would come again ends the run
at once with its own message.
"""

import logging
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import InsufficientClusterResourcesError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.placement_group import PlacementGroup

from segtrain import cluster, preflight, report
from segtrain.config import Recipe
from segtrain.errors import RunError, UserError
from segtrain.failures import (
    KNOWN_ERRORS,
    DeviceMemoryError,
    WorkerError,
    comes_again,
    portable,
    what_happened,
    with_smaller_batch,
)
from segtrain.progress import Display, Mailbox, closing_lines, open_display
from segtrain.storage import Storage, join
from segtrain.tensorflow_cluster import TensorFlowCluster
from segtrain.training.status import Progress, RunSummary
from segtrain.training.world import World

Tell = Callable[[Progress], None]
Train = Callable[[Recipe, World, Tell], RunSummary]
OnGroup = Callable[[PlacementGroup], None]

TELL_EVERY_S = 0.5
POLL_EVERY_S = 0.5
HEALTH_CHECK_EVERY_S = 0.5
"""Ray's 2 s would add as much to the end of every run and to the notice of a lost worker."""


def launch(recipe: Recipe, *, extend: bool = False) -> RunSummary:
    """Train as the recipe says, from the run's newest checkpoint on where there is one, and show how it goes.

    `extend` lets `train.epochs` grow over what the run's folder was trained for. Where a device runs out of memory, it
    gets half the pictures at once in twice the passes, and the run goes on from its last checkpoint. Returns the scores
    of the best epoch.
    Raises UserError before anything starts where the data, the run's folder or the cluster does not fit, and the
    worker's own UserError, DataError or StorageError where it fails later; RunError where workers were lost more
    often than `cluster.max_failures`; KeyboardInterrupt on Ctrl-C and SIGTERM.
    """
    return run(recipe, train_with_tensorflow, extend=extend)


def dry_run(recipe: Recipe, *, extend: bool = False) -> list[str]:
    """Lines that say what `launch` would do. Raises what `launch` would raise before anything starts."""
    recipe = preflight.absolute(recipe)
    storage = Storage(recipe.storage)
    size = preflight.check_data_set(recipe, storage)
    fitted = preflight.fit_devices(recipe, size)
    recipe = fitted.recipe
    resumes = preflight.check_run_folder(recipe, storage, extend=extend)
    with cluster.connection():
        offer = cluster.offer()
        _check_cluster(recipe, offer)
    lines = [recipe.to_yaml(), *preflight.plan_lines(fitted, size, offer)]
    return [*lines, "goes on from the folder's newest checkpoint"] if resumes else lines


def run(recipe: Recipe, train: Train, *, extend: bool = False) -> RunSummary:
    """`launch` with any training function; it must be picklable.

    Each worker calls it with its own `World`; rank 0's progress is shown and its summary returned.
    """
    recipe = preflight.absolute(recipe)
    storage = Storage(recipe.storage)
    display = open_display(recipe.run.progress_every_s)
    try:
        summary, _ = run_on(display, recipe, train, extend=extend)
    finally:
        display.close()
    if storage.exists(join(recipe.run.folder, "metrics.jsonl")):  # a training function of one's own need not keep any
        report.write(recipe.run.folder, storage)
    for line in closing_lines(summary, recipe):
        display.note(line)
    return summary


def run_on(
    display: Display, recipe: Recipe, train: Train, *, extend: bool = False, on_group: OnGroup | None = None
) -> tuple[RunSummary, Recipe]:
    """`run` on a display that is already open and stays so, without the lines at the end.

    A sweep's trial gives `on_group`: it is called, in the controller, with the placement group of each group of workers
    that has started, and whoever gets it answers for its removal. Ray keeps it as long as the sweep's own process
    lives, even when trial and controller are gone.

    Returns the recipe too, as it was in the end: with smaller batches where a device ran out of memory.
    """
    recipe = preflight.absolute(recipe)
    storage = Storage(recipe.storage)
    fitted = preflight.fit_devices(recipe, preflight.check_data_set(recipe, storage))
    recipe = fitted.recipe
    resumes = preflight.check_run_folder(recipe, storage, extend=extend)
    if on_group is None:
        display.note(f"{'resuming' if resumes else 'starting'} {recipe.run.folder}")
    if fitted.reasons:
        display.note(f"changed to fit cluster.device_bytes: {'; '.join(fitted.reasons)}")
    with cluster.connection():
        _check_cluster(recipe, cluster.offer())
        return _fit_in_memory(recipe, train, display, on_group)


def train_with_tensorflow(recipe: Recipe, world: World, tell: Tell) -> RunSummary:
    """The training loop; TensorFlow is imported here, in the worker."""
    from segtrain.training.loop import train

    return train(recipe, world, on_progress=tell)


def _check_cluster(recipe: Recipe, offer: preflight.Offer) -> None:
    preflight.check_offer(recipe.cluster, offer)
    preflight.check_shared_paths(recipe, offer)


def _fit_in_memory(
    recipe: Recipe, train: Train, display: Display, on_group: OnGroup | None
) -> tuple[RunSummary, Recipe]:
    """`_fit`, again with half the pictures on a device at once each time that one runs out of memory.

    Raises UserError where one picture is too much.
    """
    while True:
        try:
            return _fit(recipe, train, display, on_group), recipe
        except DeviceMemoryError as error:
            recipe, change = with_smaller_batch(recipe, error)
            display.note(f"{change}; restarting from the last checkpoint")


def _fit(recipe: Recipe, train: Train, display: Display, on_group: OnGroup | None) -> RunSummary:
    """Run the workers until they are done, passing on what they tell."""
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
    scratch = Path(tempfile.mkdtemp(prefix="segtrain-ray-"))
    max_failures = recipe.cluster.max_failures
    callbacks: list[Any] = [_Failures(mailbox, max_failures), *([_Groups(on_group)] if on_group else [])]
    settings: Any = RunConfig(
        # Ray silently goes on with a run of the same name, so none is used twice.
        name=f"{recipe.run.name}-{uuid.uuid4().hex[:8]}",
        storage_path=str(scratch),
        failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=max_failures),
        callbacks=callbacks,
        logging_config=LoggingConfig(log_level="ERROR"),
    )
    trainer = _Trainer(
        _work,
        train_loop_config={"recipe": recipe.to_dict(), "train": train, "mailbox": mailbox},
        backend_config=TensorFlowCluster(recipe.cluster.compute_threads),
        scaling_config=_scaling(recipe),
        run_config=settings,
    )
    try:
        with _showing(mailbox, display), _train_environment(recipe), _interruptible():
            result: Any = trainer.fit()
    except TrainingFailedError as error:
        raise plain(error, recipe) from None
    finally:
        ray.kill(mailbox)
        shutil.rmtree(scratch, ignore_errors=True)
    summary: RunSummary = result.return_value
    return summary


def _scaling(recipe: Recipe) -> ScalingConfig:
    asked = recipe.cluster
    resources: dict[str, float] = {"CPU": asked.cpus_per_worker}
    if asked.gpus_per_worker:
        resources["GPU"] = asked.gpus_per_worker
    return ScalingConfig(num_workers=asked.workers, use_gpu=asked.gpus_per_worker > 0, resources_per_worker=resources)


@contextmanager
def _train_environment(recipe: Recipe) -> Iterator[None]:
    """Ray Train's settings that exist only as variables of the driver's environment."""
    # A group that cannot start is tried again max_failures times; the wait is shared out, so all of it is the deadline.
    wait_s = recipe.cluster.start_timeout_s / (recipe.cluster.max_failures + 1)
    with cluster.environment(
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=str(HEALTH_CHECK_EVERY_S),
        RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=str(wait_s),
        RAY_TRAIN_METRICS_ENABLED="0",
        RAY_CHDIR_TO_TRIAL_DIR="0",
    ):
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block as KeyboardInterrupt; Ray's handlers stop the workers and raise SystemExit."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if on_main_thread:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _showing(mailbox: Any, display: Display) -> Iterator[None]:
    """A thread carries what the workers tell to the display."""
    done = threading.Event()

    def show_all() -> None:
        for told in ray.get(mailbox.take.remote()):
            if isinstance(told, str):
                display.note(told)
            else:
                display.show(told)

    def watch() -> None:
        # Without the mailbox's process a run goes on unseen; its record is in its folder.
        with suppress(RayActorError):
            while not done.wait(POLL_EVERY_S):
                show_all()
            show_all()

    watcher = threading.Thread(target=watch, name="segtrain-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(timeout=5.0)


class _Groups(WorkerGroupCallback):
    """In the controller: hands every placement group to whoever answers for it."""

    def __init__(self, on_group: OnGroup) -> None:
        self._on_group = on_group

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._on_group(worker_group.get_worker_group_state().placement_group_handle.placement_group)


class _Trainer(DataParallelTrainer):
    """Leaves out Ray's cleaner of placement groups where another does its work, and where it cannot do it.

    Without a dashboard it only warns.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        cleaned_elsewhere = any(isinstance(callback, _Groups) for callback in callbacks)
        if not cleaned_elsewhere and ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).dashboard_url:
            return callbacks
        return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]


def _work(config: dict[str, Any]) -> Any:
    """What Ray Train runs in each worker."""
    recipe = Recipe.from_dict(config["recipe"])
    context = ray.train.get_context()
    world = World(
        workers=context.get_world_size(),
        rank=context.get_world_rank(),
        replicas_per_worker=recipe.cluster.replicas_per_worker,
        gpus_per_worker=recipe.cluster.gpus_per_worker,
    )
    mailbox = config["mailbox"]
    logging.getLogger("segtrain").addHandler(_ToMailbox(mailbox, world.rank))
    tell = _teller(mailbox) if world.is_chief else lambda progress: None
    try:
        return config["train"](recipe, world, tell)
    except Exception as error:
        raise portable(error, gpus=world.gpus_per_worker > 0) from None


class _ToMailbox(logging.Handler):
    """Shows the user what segtrain logs in a worker, from warnings on."""

    def __init__(self, mailbox: Any, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._mailbox = mailbox
        self._rank = rank

    def emit(self, record: logging.LogRecord) -> None:
        self._mailbox.put.remote(f"worker {self._rank}: {record.getMessage()}")


def _teller(mailbox: Any) -> Tell:
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


class _Failures(UserCallback):
    """In the controller: ends the run on an error that would come again, and says so where workers start again."""

    def __init__(self, mailbox: Any, max_failures: int) -> None:
        self._mailbox = mailbox
        self._max_failures = max_failures
        self._failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raising here is what makes the controller give up at once."""
        causes = {rank: _cause(error) for rank, error in worker_exceptions.items()}
        for cause in causes.values():
            if comes_again(cause):
                raise cause
        self._failures += 1
        if self._failures <= self._max_failures:
            self._mailbox.put.remote(
                f"{what_happened(causes)}; restarting from the last checkpoint "
                f"({self._failures} of {self._max_failures})"
            )


def _cause(error: Exception) -> Exception:
    """The worker's exception without what Ray Train wraps around it."""
    cause: Exception = getattr(error, "_base_exc", error)
    return cause


def plain(error: TrainingFailedError, recipe: Recipe) -> Exception:
    """The exception that tells the user what went wrong, from what Ray Train makes of it."""
    asked = recipe.cluster
    if isinstance(error, ControllerError):
        failure = error.controller_failure
        if isinstance(failure, WorkerGroupStartupTimeoutError):
            return UserError(
                f"cluster.start_timeout_s: no room for {preflight.needs(asked)} within {asked.start_timeout_s:g} s "
                f"on {cluster.offer()}, some of it in use; wait, raise the deadline, or ask for less"
            )
        if isinstance(failure, InsufficientClusterResourcesError):
            return UserError(f"the cluster can never hold {preflight.needs(asked)}; it has {cluster.offer()}")
        if isinstance(failure, WorkerError) and not isinstance(failure, DeviceMemoryError):
            return RuntimeError(failure.trace)
        return failure
    if isinstance(error, WorkerGroupError):
        causes = {rank: _cause(failure) for rank, failure in error.worker_failures.items()}
        for cause in causes.values():
            if isinstance(cause, KNOWN_ERRORS):
                return cause
        traces = "".join(f"\n{cause.trace}" for cause in causes.values() if isinstance(cause, WorkerError))
        return RunError(
            f"{what_happened(causes)}, after {asked.max_failures} restarts (cluster.max_failures); "
            f"the same command goes on from the last checkpoint{traces}"
        )
    return error

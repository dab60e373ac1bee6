"""One group of workers as a Ray Train run: the only module that knows Ray Train's trainer.

Ray's own restarts, checkpoints and preemption watcher are left off: `segtrain.launch` starts the next group, so one
loop decides how many workers it has and what counts as a failure.
"""

import logging
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup

from segtrain import cluster
from segtrain.config import Recipe
from segtrain.tensorflow_cluster import TensorFlowCluster
from segtrain.training.status import Left, RunSummary
from segtrain.worker import Train, work

OnGroup = Callable[[PlacementGroup], None]

HEALTH_CHECK_EVERY_S = 0.5
"""Ray's 2 s would add as much to the end of every run and to the notice of a lost worker."""


def run_group(
    recipe: Recipe,
    train: Train,
    mailbox: Any,
    *,
    start_within_s: float,
    on_signal: Callable[[], bool],
    on_group: OnGroup | None = None,
) -> RunSummary | Left:
    """Start `cluster.workers` (one number) workers, wait for their end, and return what the chief returned.

    `on_signal` is called at the first Ctrl-C or SIGTERM and returns whether the workers will leave by themselves; if
    not, and at the second, they are ended and KeyboardInterrupt is raised. Raises Ray's TrainingFailedError where a
    worker fails or the group cannot start within `start_within_s`.
    """
    scratch = Path(tempfile.mkdtemp(prefix="segtrain-ray-"))
    settings: Any = RunConfig(
        # Ray silently goes on with a run of the same name, so none is used twice.
        name=f"{recipe.run.name}-{uuid.uuid4().hex[:8]}",
        storage_path=str(scratch),
        failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        callbacks=[_Groups(on_group)] if on_group else [],  # type: ignore[list-item]
        logging_config=LoggingConfig(log_level="ERROR"),
    )
    trainer = _Trainer(
        work,
        train_loop_config={"recipe": recipe.to_dict(), "train": train, "mailbox": mailbox},
        backend_config=TensorFlowCluster(recipe.cluster.compute_threads),
        scaling_config=_scaling(recipe),
        run_config=settings,
    )
    trainer.on_signal = on_signal
    try:
        with _train_environment(recipe, start_within_s):
            result: Any = trainer.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    outcome: RunSummary | Left = result.return_value
    return outcome


def _scaling(recipe: Recipe) -> ScalingConfig:
    asked = recipe.cluster
    return ScalingConfig(
        num_workers=asked.max_workers, use_gpu=asked.gpus_per_worker > 0, resources_per_worker=cluster.bundle(asked)
    )


@contextmanager
def _train_environment(recipe: Recipe, start_within_s: float) -> Iterator[None]:
    """Ray Train's settings that exist only as variables of the driver's environment."""
    with cluster.environment(
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=str(HEALTH_CHECK_EVERY_S),
        RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S=str(recipe.cluster.stuck_after_s),
        RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=str(start_within_s),
        RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",
        RAY_TRAIN_METRICS_ENABLED="0",
        RAY_CHDIR_TO_TRIAL_DIR="0",
    ):
        yield


@contextmanager
def signals_restored() -> Iterator[None]:
    """Ctrl-C and SIGTERM are handled after the block as before it; inside, SystemExit becomes KeyboardInterrupt.

    Ray ends a driver that gets SIGTERM by SystemExit.
    """
    on_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if on_main_thread:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Groups(WorkerGroupCallback):
    """In the controller: hands every placement group to whoever answers for it."""

    def __init__(self, on_group: OnGroup) -> None:
        self._on_group = on_group

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._on_group(worker_group.get_worker_group_state().placement_group_handle.placement_group)


class _Trainer(DataParallelTrainer):
    """Handles signals our way, and leaves out Ray's cleaner of placement groups where it is of no use."""

    on_signal: Callable[[], bool]

    def _create_default_callbacks(self) -> list[Any]:
        """Without the cleaner where another does its work, and without a dashboard, where it can only warn."""
        callbacks: list[Any] = super()._create_default_callbacks()
        cleaned_elsewhere = any(isinstance(callback, _Groups) for callback in callbacks)
        if not cleaned_elsewhere and ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).dashboard_url:
            return callbacks
        return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ray calls this in a main thread, once there is a controller."""
        asked = False

        def handle(number: int, frame: Any) -> None:
            nonlocal asked
            first, asked = not asked, True
            if first and self.on_signal():
                return
            with suppress(RayError):  # the controller's end is its answer
                ray.get(controller.abort.remote())
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGTERM, handle)

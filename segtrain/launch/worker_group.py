"""One group of workers as a Ray Train run: the only module that knows Ray Train's trainer.

Ray's own restarts, checkpoints and preemption watcher are left off: `launch/train_run.py` starts the next group, so
one loop decides how many workers it has and what counts as a failure.
"""

import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup

from segtrain.cluster import nodes
from segtrain.cluster.ray_internals import get_dashboard_url
from segtrain.cluster.stop_signal import StopSignal
from segtrain.cluster.train_internals import GROUP_CLEANER, WorkerGroupCallback
from segtrain.config import Recipe
from segtrain.launch.tensorflow_cluster import TensorFlowCluster
from segtrain.launch.train_worker import Train, work
from segtrain.process import environment
from segtrain.runs.status import Left, RunSummary
from segtrain.storage.scratch import scratch_folder

OnGroup = Callable[[PlacementGroup], None]

END_WITHIN_S = 5.0
HEALTH_CHECK_EVERY_S = 0.5
"""Ray's 2 s would add as much to the end of every run and to the notice of a lost worker."""


def run_group(
    recipe: Recipe,
    train: Train,
    mailbox: Any,
    *,
    claim: str,
    start_within_s: float,
    stop: StopSignal,
    on_group: OnGroup | None = None,
) -> RunSummary | Left:
    """Start `cluster.workers` (one number) workers, wait for their end, and return what the chief returned.

    `claim` is the token of the driver's claim on the run's folder. Where `stop` ends the run, it ends controller and
    workers. Raises Ray's TrainingFailedError where a worker fails or the group cannot start within `start_within_s`,
    and RayActorError or OutOfMemoryError where the controller is lost.
    """
    with scratch_folder("ray") as scratch:
        given = {"recipe": recipe.to_dict(), "train": train, "mailbox": mailbox, "claim": claim}
        trainer = _trainer(recipe, given, str(scratch), on_group)
        trainer.stop = stop
        # Ray Train's settings that exist only as variables of the driver's environment.
        with environment(
            RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=str(HEALTH_CHECK_EVERY_S),
            RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S=str(recipe.cluster.stuck_after_s),
            RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=str(start_within_s),
            RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",
            RAY_TRAIN_METRICS_ENABLED="0",
            RAY_CHDIR_TO_TRIAL_DIR="0",
        ):
            result: Any = trainer.fit()
    outcome: RunSummary | Left = result.return_value
    return outcome


def _trainer(recipe: Recipe, given: dict[str, Any], scratch: str, on_group: OnGroup | None) -> "_Trainer":
    """`given` is what each worker is called with."""
    asked = recipe.cluster
    settings: Any = RunConfig(
        # Ray silently goes on with a run of the same name, so none is used twice.
        name=f"{recipe.run.name}-{uuid.uuid4().hex[:8]}",
        storage_path=scratch,
        failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        callbacks=[_Groups(on_group)] if on_group else [],  # type: ignore[list-item]
        logging_config=LoggingConfig(log_level="ERROR"),
    )
    return _Trainer(
        work,
        train_loop_config=given,
        backend_config=TensorFlowCluster(asked.compute_threads),
        scaling_config=ScalingConfig(
            num_workers=asked.max_workers, use_gpu=asked.gpus_per_worker > 0, resources_per_worker=nodes.bundle(asked)
        ),
        run_config=settings,
    )


class _Groups(WorkerGroupCallback):
    """In the controller: hands every placement group to whoever answers for it."""

    def __init__(self, on_group: OnGroup) -> None:
        self._on_group = on_group

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._on_group(worker_group.get_worker_group_state().placement_group_handle.placement_group)


class _Trainer(DataParallelTrainer):
    """Handles signals our way, and leaves out Ray's cleaner of placement groups where it is of no use."""

    stop: StopSignal

    def _create_default_callbacks(self) -> list[Any]:
        """Without the cleaner where another does its work, and without a dashboard, where it can only warn."""
        callbacks: list[Any] = super()._create_default_callbacks()
        cleaned_elsewhere = any(isinstance(callback, _Groups) for callback in callbacks)
        if not cleaned_elsewhere and get_dashboard_url():
            return callbacks
        return [callback for callback in callbacks if type(callback).__name__ != GROUP_CLEANER]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ray calls this in a main thread, once there is a controller; signals are handled by `stop` already."""
        self.stop.ends_with(lambda: _end(controller))


def _end(controller: Any) -> None:
    """End controller and workers. One that waits for resources does not listen, and has no workers yet."""
    with suppress(RayError):  # its death is its answer
        ray.get(controller.abort.remote(), timeout=END_WITHIN_S)
    ray.kill(controller)

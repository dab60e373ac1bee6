"""What Ray Tune tells of a sweep while it goes on: shown to the user, and kept where only Tune knows it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import OutOfMemoryError, RayActorError

from segtrain.cluster.failures import MORE_HOST_MEMORY, TOO_LITTLE_HOST_MEMORY
from segtrain.config import Recipe
from segtrain.runs.status import Progress
from segtrain.tune.display import SweepDisplay
from segtrain.tune.search import PointSearch
from segtrain.tune.sweep_record import SweepRecord

LOOK_AT_OWNER_EVERY_S = 5.0


class Watching(tune.Callback):
    """Shows how the sweep goes, and keeps in its record what only Tune tells: starts and failures."""

    def __init__(
        self,
        record: SweepRecord,
        search: PointSearch,
        display: SweepDisplay,
        recipe: Recipe,
        free: Callable[[int], None],
    ) -> None:
        """`free` lets go of what a trial of several workers holds, by its number."""
        self._free = free
        self._record = record
        self._search = search
        self._display = display
        self._recipe = recipe
        self._looked_at = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._record.put(self._record[trial.config["number"]].started())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        for line in result.get("notes", ()):
            self._display.note(f"trial {trial.config['number']}: {line}")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        self._free(number)
        self._display.note(
            f"trial {number}: {failure_of(trial)}; starting it again from its newest checkpoint "
            f"({trial.num_failures} of {self._recipe.tune.max_failures})"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        self._free(number)
        if not self._record[number].is_over:  # what was decided before its process failed stands
            self._record.put(self._record[number].ended("failed", failure_of(trial)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """`done` is set where the trial's function returned; a trial that the budget ends is left as it is."""
        now = self._record[trial.config["number"]]
        self._free(now.number)
        if now.status == "running" and (trial.last_result or {}).get("done"):
            self._record.put(now.ended("finished"))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        record, planned, epochs = self._record, self._search.planned, self._recipe.train.epochs
        if time.monotonic() - self._looked_at >= LOOK_AT_OWNER_EVERY_S:
            self._looked_at = time.monotonic()
            record.look()
        self._display.update(
            record.trials,
            planned=planned,
            running={
                trial.number: Progress("saved", trial.epochs, epochs) if trial.history else None
                for trial in record.trials
                if trial.status == "running"
            },
            seconds=record.seconds,
            gpu_s=record.gpu_s,
            left_s=_left_s(record, planned, self._recipe.tune.max_hours),
        )


def failure_of(trial: Any) -> str:
    """What went wrong with a Tune trial, in a line; Tune keeps it in files of its own folder for the trial."""
    if trial.pickled_error_file is None:  # a fault of Tune's own, which it keeps as text alone
        return str(Path(trial.error_file).read_text().strip().splitlines()[-1])
    error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    if isinstance(error, RayActorError):
        return "its process was lost"
    cause = getattr(error, "cause", error)
    if isinstance(cause, OutOfMemoryError):
        return f"{TOO_LITTLE_HOST_MEMORY}; {MORE_HOST_MEMORY}"
    return str(getattr(cause, "headline", f"{type(cause).__name__}: {cause}")).strip().splitlines()[0]


def _left_s(record: SweepRecord, planned: int, max_hours: float | None) -> float | None:
    """Seconds to the end if the trials to come take what those before took on average; None before the first."""
    over = sum(trial.is_over and trial.status != "infeasible" for trial in record.trials)
    if not over:
        return None
    left = record.seconds / over * max(planned - over, 0)
    return left if max_hours is None else min(left, max(max_hours * 3600 - record.seconds, 0.0))

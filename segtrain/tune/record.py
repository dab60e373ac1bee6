"""What the driver of a sweep knows of its trials, kept in the sweep's folder at every change."""

import time
from collections.abc import Sequence

from segtrain.config import Recipe
from segtrain.errors import UserError
from segtrain.preflight import recipe_of
from segtrain.storage import Storage, join
from segtrain.trials import (
    Scored,
    Sweep,
    SweepState,
    Trial,
    read_sweep,
    read_trials,
    trial_folder,
    write_sweep,
    write_trial,
)


class SweepRecord:
    """The trials by number. Every change is in the folder when the method returns, so a killed driver loses nothing."""

    def __init__(self, folder: str, storage: Storage) -> None:
        """Read what an earlier attempt has left; nothing in a new folder."""
        self.folder = folder
        self._storage = storage
        earlier = read_sweep(folder, storage)
        self._trials = {trial.number: trial for trial in (read_trials(folder, storage) if earlier else [])}
        self._seconds_before = earlier.seconds if earlier else 0.0
        self._started = time.monotonic()

    @property
    def trials(self) -> list[Trial]:
        return [self._trials[number] for number in sorted(self._trials)]

    @property
    def launched(self) -> int:
        """Trials that count against `tune.max_trials`: all but the infeasible."""
        return sum(trial.status != "infeasible" for trial in self._trials.values())

    @property
    def next_number(self) -> int:
        return max(self._trials, default=-1) + 1

    @property
    def seconds(self) -> float:
        """Of all attempts of the sweep so far."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def gpu_s(self) -> float:
        return sum(trial.gpu_s for trial in self._trials.values())

    def __getitem__(self, number: int) -> Trial:
        return self._trials[number]

    def put(self, trial: Trial) -> None:
        """Keep a trial that is new or has changed."""
        self._trials[trial.number] = trial
        write_trial(self.folder, trial, self._storage)
        if trial.is_over:
            self.put_sweep("running")  # so that the hours of an attempt that is killed count too, up to here

    def put_recipe(self, number: int, recipe: Recipe) -> None:
        """Keep what a trial trains, before the trial itself is kept: it is never worked out again."""
        url = join(trial_folder(self.folder, number), "recipe.yaml")
        self._storage.write_bytes(url, recipe.to_yaml().encode())

    def recipe_of(self, number: int) -> Recipe | None:
        """What a trial of an earlier attempt trains; None for a new one.

        None, too, where an older segtrain was killed before the trial began: only `put_recipe` comes before the trial.
        """
        if number not in self._trials:
            return None
        try:
            return recipe_of(trial_folder(self.folder, number), self._storage)
        except FileNotFoundError:
            return None

    def scored(self, number: int, scored: Scored) -> Trial:
        """Keep a trial's next epoch, in memory alone: what is decided on it is kept together with it, by `put`."""
        self._trials[number] = self._trials[number].after(scored)
        return self._trials[number]

    def put_sweep(self, state: SweepState, reason: str = "") -> None:
        """Keep the facts of the sweep as a whole."""
        write_sweep(self.folder, Sweep(state, reason, round(self.seconds, 1)), self._storage)

    def interrupted(self, reason: str) -> None:
        """The sweep ends with trials under way: keep them as ones that a resumed sweep goes on with."""
        for trial in self.trials:
            if trial.status == "running":
                self.put(trial.ended("stopped", reason, resumable=True))

    def to_resume(self) -> Sequence[Trial]:
        """Trials of earlier attempts that are not over."""
        return [trial for trial in self.trials if not trial.is_over]


def check_folder_is_new(folder: str, storage: Storage, *, resume: bool) -> None:
    """Raise UserError for a sweep that is there without `resume`, and for none with it."""
    there = read_sweep(folder, storage) is not None
    if there and not resume:
        raise UserError(f"{folder} holds a sweep; go on with it by --resume, or give another name (run.name=...)")
    if resume and not there:
        raise UserError(f"--resume: {folder} holds no sweep; check run.storage and run.name, or leave --resume out")

"""What the driver of a sweep knows of its trials, kept in the sweep's folder at every change while it has the sweep."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from segtrain.config import Recipe
from segtrain.errors import ConflictError, StorageError, TakenOverError, UserError
from segtrain.runs.ownership import new_token, version_of, write_while
from segtrain.runs.run_folder import RECIPE_NAME, RunFolder, recipe_of
from segtrain.runs.trials import (
    SWEEP_NAME,
    ScoredEpoch,
    Sweep,
    SweepState,
    Trial,
    read_sweep,
    read_trials,
    trial_folder,
    write_sweep,
    write_trial,
)
from segtrain.storage.files import Storage, join


class SweepRecord:
    """The trials by number. Every change is in the folder when the method returns, so a killed driver loses nothing.

    Ray Tune turns what its parts raise into text, so a write that fails is kept in `fault`, and none is tried after it.
    """

    def __init__(self, folder: str, storage: Storage) -> None:
        """Read what an earlier attempt has left; nothing in a new folder."""
        self.folder = folder
        self.token = ""
        """What the sweep's folder and its trials' know this driver by, once it has claimed them."""
        self.fault: Exception | None = None
        """Why nothing can be written any more: TakenOverError, StorageError, or what only the user can mend."""
        self._storage = storage
        self._own_from: int | None = None
        self._started = time.monotonic()
        self._read()

    def claim(self, *, resume: bool) -> None:
        """Take the sweep's folder, whoever had it, and read again what is there. Raises as `check_folder_is_new`.

        A driver before this one finds out at its next write, which does not land: sweep and trials under way are other
        versions by then, and trials that it adds do not count.
        """
        self.token = new_token()
        while True:
            version = version_of(join(self.folder, SWEEP_NAME), self._storage)
            check_folder_is_new(self.folder, self._storage, resume=resume)
            earlier = read_sweep(self.folder, self._storage)
            claimed = Sweep("running", seconds=earlier.seconds if earlier else 0.0, driver=self.token)
            try:
                self._storage.write_if_version(join(self.folder, SWEEP_NAME), claimed.to_json().encode(), version)
                break
            except ConflictError:
                continue
        self._read()
        self._storage.remove_leftovers(self.folder)
        for trial in self.to_resume():
            self._storage.remove_leftovers(trial_folder(self.folder, trial.number))
            self.put(trial)
        self._own_from = self.next_number
        self.put_sweep("running")
        self.raise_fault()

    def _read(self) -> None:
        earlier = read_sweep(self.folder, self._storage)
        self._trials = {trial.number: trial for trial in (read_trials(self.folder, self._storage) if earlier else [])}
        self._seconds_before = earlier.seconds if earlier else 0.0

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
        trial = self._trials[trial.number] = replace(trial, driver=self.token)
        self._try(lambda: write_trial(self.folder, trial, self._storage, self._check_owner))
        if trial.is_over:
            self.put_sweep("running")  # so that the hours of an attempt that is killed count too, up to here

    def put_recipe(self, number: int, recipe: Recipe) -> None:
        """Keep what a trial trains, before the trial itself is kept: it is never worked out again."""
        self._put_text(RunFolder(trial_folder(self.folder, number)).recipe, recipe.to_yaml())

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

    def scored(self, number: int, scored: ScoredEpoch) -> Trial:
        """Keep a trial's next epoch, in memory alone: what is decided on it is kept together with it, by `put`."""
        self._trials[number] = self._trials[number].after(scored)
        return self._trials[number]

    def put_sweep(self, state: SweepState, reason: str = "") -> None:
        """Keep the facts of the sweep as a whole."""
        facts = Sweep(state, reason, round(self.seconds, 1), driver=self.token, own_from=self._own_from)
        self._try(lambda: write_sweep(self.folder, facts, self._storage, self._check_owner))

    def put_file(self, name: str, text: str) -> None:
        """Keep a file that is made of the record."""
        self._put_text(join(self.folder, name), text)

    def give_out(self, number: int) -> None:
        """Claim the folder of a trial that is to run: who runs it for a driver before this one ends."""
        self._put_text(RunFolder(trial_folder(self.folder, number)).owner, self.token)

    def look(self) -> None:
        """Find out now whether another driver has the sweep."""
        self._try(self._check_owner)

    def raise_fault(self) -> None:
        """Raise what was kept as `fault`."""
        if self.fault is not None:
            raise self.fault

    def interrupted(self, reason: str) -> None:
        """The sweep ends with trials under way: keep them as ones that a resumed sweep goes on with."""
        for trial in self.trials:
            if trial.status == "running":
                self.put(trial.ended("stopped", reason, resumable=True))

    def to_resume(self) -> Sequence[Trial]:
        """Trials of earlier attempts that are not over."""
        return [trial for trial in self.trials if not trial.is_over]

    def _put_text(self, url: str, text: str) -> None:
        self._try(lambda: write_while(self._check_owner, url, text.encode(), self._storage))

    def _try(self, write: Callable[[], None]) -> None:
        if self.fault is None:
            try:
                write()
            except (UserError, StorageError) as fault:
                self.fault = fault

    def _check_owner(self) -> None:
        """Raise TakenOverError where the sweep is another driver's, or is gone."""
        sweep = read_sweep(self.folder, self._storage)
        if sweep is None or sweep.driver != self.token:
            whose = "is gone" if sweep is None else "is searched by another process by now, which began later"
            raise TakenOverError(f"{self.folder} {whose}; this one ends, and has written nothing since")


def check_folder_is_new(folder: str, storage: Storage, *, resume: bool) -> None:
    """Raise UserError for a sweep that is there without `resume`, and for none with it."""
    there = holds_sweep(folder, storage)
    if there and not resume:
        raise UserError(f"{folder} holds a sweep; go on with it by --resume, or give another name (run.name=...)")
    if resume and not there:
        raise UserError(f"--resume: {folder} holds no sweep; check run.storage and run.name, or leave --resume out")
    if not there and storage.list(join(folder, "trials")):
        missing = RECIPE_NAME if read_sweep(folder, storage) else SWEEP_NAME
        raise UserError(f"{folder} holds trials but no {missing}; put it back, or give another name (run.name=...)")


def holds_sweep(folder: str, storage: Storage) -> bool:
    """Whether the folder holds a sweep that has begun: its driver writes `recipe.yaml` once it has claimed the folder.

    One that was killed in between has left nothing to go on with.
    """
    return read_sweep(folder, storage) is not None and storage.exists(RunFolder(folder).recipe)

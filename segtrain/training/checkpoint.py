"""Saving and restoring a run's whole state, so that it can be killed at any moment.

A checkpoint is a folder `checkpoints/step-00000120/` with `arrays.npz`, `state.json`, `recipe.yaml` and, written last,
`checksums.json` with the sha256 of the others: a folder without it was never finished.
"""

import hashlib
import importlib.metadata
import io
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from segtrain.config import Recipe, TrainConfig
from segtrain.errors import UserError
from segtrain.storage import Storage, join

log = logging.getLogger(__name__)
CHECKSUMS = "checksums.json"


@dataclass
class Cursor:
    """How far a run has come: what to do next and what has been best. Plain numbers only; saved as JSON."""

    epoch: int = 0
    """Epoch in progress, from 0."""
    step_in_epoch: int = 0
    step: int = 0
    """Optimizer steps since the start of the run."""
    samples: float = 0.0
    loss_sum: float = 0.0
    dice_sum: float = 0.0
    """Sums over the epoch in progress."""
    train_s: float = 0.0
    """Seconds spent training and evaluating, all attempts together."""
    best_dice: float = -1.0
    best_epoch: int = 0
    best_step: int = 0
    best_metrics: dict[str, Any] = field(default_factory=dict)
    epochs_without_better: int = 0
    plateau_fraction: float = 1.0
    epochs_on_plateau: int = 0

    def add(self, loss: float, dice: float, samples: float) -> None:
        """Add one step's sums over pictures."""
        self.loss_sum += loss
        self.dice_sum += dice
        self.samples += samples

    def start_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch."""
        self.epoch = epoch
        self.step_in_epoch = 0
        self.samples = self.loss_sum = self.dice_sum = 0.0

    def is_finished(self, train: TrainConfig) -> bool:
        """Whether the run has come to its last epoch, or has had no better evaluation for too long."""
        patience = train.early_stopping_epochs
        return self.epoch >= train.epochs or (patience is not None and self.epochs_without_better >= patience)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: arrays by name, cursor, and facts about the run that wrote it."""

    arrays: dict[str, np.ndarray]
    cursor: Cursor
    facts: dict[str, Any]


def facts_of(recipe: Recipe, data_fingerprint: str) -> dict[str, Any]:
    """What must agree for a checkpoint to continue a run, and what helps to understand one later."""
    packages = ("tensorflow", "keras", "ray", "numpy", "pyarrow")
    return {
        "recipe_fingerprint": recipe.fingerprint(),
        "data_fingerprint": data_fingerprint,
        "seed": recipe.train.seed,
        "lanes": recipe.data.lanes,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


class Checkpoints:
    """The checkpoints of one run. One process, the chief, saves; any may restore."""

    def __init__(self, folder: str, storage: Storage, *, keep: int) -> None:
        self._root = join(folder, "checkpoints")
        self._storage = storage
        self._keep = keep
        self._damaged: set[str] = set()
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.saved_step = 0
        """Step of the newest checkpoint that is known to be complete: written or restored by this process."""

    def save(self, arrays: Mapping[str, np.ndarray], cursor: Cursor, facts: Mapping[str, Any], recipe: Recipe) -> None:
        """Write in the background; waits for the save before, and raises its fault. `arrays` must not change."""
        self.wait()
        state = json.dumps({"cursor": asdict(cursor), "facts": dict(facts)}, indent=1)
        protected = {_name(cursor.step), _name(cursor.best_step)}
        self._writer = threading.Thread(
            target=self._write, args=(dict(arrays), state, recipe.to_yaml(), cursor.step, protected)
        )
        self._writer.start()

    def wait(self) -> None:
        """Return when the save in progress is complete. Raises what it raised."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def restore(self, step: int | None = None) -> Checkpoint | None:
        """The newest checkpoint whose checksums hold (or the one of `step`); None where there is none.

        A damaged one is named in the log, skipped, and left where it is. Raises StorageError where storage does not
        answer: that is no damage, and an older checkpoint would throw work away.
        """
        finished = self._finished()
        for name in finished[::-1] if step is None else [_name(step)]:
            try:
                checkpoint = self._read(name)
                self.saved_step = checkpoint.cursor.step
                return checkpoint
            except (FileNotFoundError, ValueError, KeyError) as fault:
                log.warning("checkpoint %s is damaged (%s); it is kept, and an older one is tried", name, fault)
                self._damaged.add(name)
        return None

    def cursor(self) -> Cursor:
        """How far the run has come by its newest checkpoint, of which only the small files are read and checked."""
        for name in self._finished()[::-1]:
            try:
                return Cursor(**json.loads(self._checked(name, "state.json")["state.json"])["cursor"])
            except (FileNotFoundError, ValueError, KeyError) as fault:
                log.warning("checkpoint %s is damaged (%s)", name, fault)
        return Cursor()

    def data_fingerprint(self) -> str | None:
        """The version of the data set that the newest readable checkpoint was trained on; None where there is none."""
        for name in self._finished()[::-1]:
            try:
                state = json.loads(self._checked(name, "state.json")["state.json"])
                return str(state["facts"]["data_fingerprint"])
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                continue  # named where the run is taken up
        return None

    def _finished(self) -> list[str]:
        """Names of the checkpoints that were written to their end, oldest first."""
        names = [name for name in self._storage.list(self._root) if name.startswith("step-")]
        return [name for name in names if self._storage.exists(join(self._root, name, CHECKSUMS))]

    def _write(self, arrays: dict[str, np.ndarray], state: str, recipe: str, step: int, protected: set[str]) -> None:
        name = _name(step)
        try:
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)  # type: ignore[arg-type]
            files = {"arrays.npz": buffer.getvalue(), "state.json": state.encode(), "recipe.yaml": recipe.encode()}
            for file, data in files.items():
                self._storage.write_bytes(join(self._root, name, file), data)
            sums = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
            self._storage.write_bytes(join(self._root, name, CHECKSUMS), json.dumps(sums, indent=1).encode())
            self._damaged.discard(name)
            self.saved_step = step
            self._prune(protected)
        except BaseException as failure:
            # The training thread raises it at the next save.
            self._failure = failure

    def _prune(self, protected: set[str]) -> None:
        """Delete finished checkpoints beyond the newest `keep`; the best and anything unfinished or damaged stay."""
        whole = [name for name in self._finished() if name not in self._damaged]
        for name in whole[: -self._keep]:
            if name not in protected:
                # Checksums first: a deletion cut short leaves an unfinished folder, not a damaged checkpoint.
                self._storage.delete(join(self._root, name, CHECKSUMS))
                self._storage.delete(join(self._root, name))

    def _read(self, name: str) -> Checkpoint:
        files = self._checked(name)
        state = json.loads(files["state.json"])
        with np.load(io.BytesIO(files["arrays.npz"])) as stored:
            arrays = {key: stored[key] for key in stored.files}
        return Checkpoint(arrays, Cursor(**state["cursor"]), state["facts"])

    def _checked(self, name: str, *only: str) -> dict[str, bytes]:
        """A checkpoint's files by their names, all where none is named. Raises ValueError where a checksum differs."""
        folder = join(self._root, name)
        sums = json.loads(self._storage.read_bytes(join(folder, CHECKSUMS)))
        files = {file: self._storage.read_bytes(join(folder, file)) for file in only or sums}
        for file, data in files.items():
            if hashlib.sha256(data).hexdigest() != sums[file]:
                raise ValueError(f"the sha256 of {join(folder, file)} is not the recorded one")
        return files


def check_same_run(checkpoint: Checkpoint, facts: Mapping[str, Any], folder: str) -> None:
    """Refuse to continue on other data. Raises UserError; recipes are compared field by field before a launch."""
    old, new = checkpoint.facts["data_fingerprint"], facts["data_fingerprint"]
    if old != new:
        raise UserError(
            f"data.root: the run in {folder} was trained on the data set {old}, this one is {new}; "
            f"give the run another name (run.name=...)"
        )


def _name(step: int) -> str:
    return f"step-{step:08d}"

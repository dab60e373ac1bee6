"""Saving and restoring a run's whole state, so that it can be killed at any moment.

A checkpoint is a folder `checkpoints/step-00000120/` with these files:

- `arrays.npz`, `state.json`, `recipe.yaml`;
- `checksums.json`: the sha256 of the others. It is written last, so a folder without it was never finished.

A checkpoint that differs from its checksums is damaged, and an older one takes its place. One that a newer segtrain
wrote is refused.
"""

import hashlib
import importlib.metadata
import io
import json
import logging
import math
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from tokenize import TokenError
from typing import Any, TypeVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from segtrain.architectures.layer_records import DROPOUT_DRAWS
from segtrain.config import Recipe, TrainConfig
from segtrain.errors import DataError, UserError
from segtrain.runs.ownership import write_while
from segtrain.runs.run_folder import RECIPE_NAME, RunFolder
from segtrain.storage.files import Storage, join
from segtrain.storage.json_text import read_json

log = logging.getLogger(__name__)
FORMAT_VERSION = 1
ARRAYS, STATE, CHECKSUMS = "arrays.npz", "state.json", "checksums.json"
DAMAGE = (FileNotFoundError, ValueError, KeyError)
"""What reading a checkpoint raises where that is damaged; a fault of storage is something else."""
Read = TypeVar("Read")


@dataclass
class Cursor:
    """How far a run has come: what to do next and what has been best. Plain numbers only; saved as JSON."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

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
    return {
        "recipe_fingerprint": recipe.fingerprint(),
        "data_fingerprint": data_fingerprint,
        "seed": recipe.train.seed,
        "lanes": recipe.data.lanes,
        "dropout_draws": DROPOUT_DRAWS,
        "versions": {
            name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "ray", "numpy", "pyarrow")
        },
    }


class Checkpoints:
    """The checkpoints of one run. One process, the chief, saves; any may restore."""

    def __init__(
        self, folder: str, storage: Storage, *, keep: int, check_owner: Callable[[], None] = lambda: None
    ) -> None:
        """`check_owner` is called before each file is written, and raises where the folder is another process's."""
        self._folder = folder
        self._root = RunFolder(folder).checkpoints
        self._storage = storage
        self._keep = keep
        self._check_owner = check_owner
        self._damaged: set[str] = set()
        self._saving: tuple[ThreadPoolExecutor, Future[None]] | None = None
        self.saved_step = 0
        """Step of the newest checkpoint that is known to be complete: written or restored by this process."""

    def save(self, arrays: Mapping[str, np.ndarray], cursor: Cursor, facts: Mapping[str, Any], recipe: Recipe) -> None:
        """Start writing a checkpoint in the background. `arrays` must not change until it is written.

        Waits for the save before this one, and raises what that raised.
        """
        self.wait()
        state = json.dumps({"format_version": FORMAT_VERSION, "cursor": asdict(cursor), "facts": dict(facts)}, indent=1)
        protected = {_name(cursor.step), _name(cursor.best_step)}
        thread = ThreadPoolExecutor(1, thread_name_prefix="segtrain-checkpoint")
        written = thread.submit(self._write, dict(arrays), state, recipe.to_yaml(), cursor.step, protected)
        self._saving = thread, written

    def wait(self) -> None:
        """Wait until the save in progress is complete. Raises what it raised, once."""
        if self._saving is not None:
            thread, written = self._saving
            thread.shutdown()
            self._saving = None  # only now: who is interrupted while waiting waits again before it ends
            written.result()

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where none was ever finished.

        A damaged one is named in the log, skipped, and left where it is.

        Raises:
            DataError: all are damaged. To start from the beginning would throw the run away.
            UserError: the newest whole one is of a newer segtrain. An older one would throw work away.
            StorageError: storage does not answer, which is no damage.
        """
        return self._newest(self._read)

    def restore_step(self, step: int) -> Checkpoint:
        """The checkpoint of a step. Raises DataError where it is missing or damaged, and else as `restore` does."""
        try:
            return self._read(_name(step))
        except DAMAGE as fault:
            raise DataError(f"the checkpoint of step {step} in {self._folder} is damaged ({_told(fault)})") from None

    def cursor(self) -> Cursor:
        """How far the run has come by its newest checkpoint, of which only the small files are read and checked.

        Raises as `restore`.
        """
        return self._newest(lambda name: self._state(name, self._checked(name, STATE))[0]) or Cursor()

    def _newest(self, read: Callable[[str], Read]) -> Read | None:
        """What `read` makes of the newest checkpoint that it can read; None where there is none at all."""
        faults: dict[str, str] = {}
        for name in reversed(self._finished()):
            try:
                return read(name)
            except DAMAGE as fault:
                faults[name] = _told(fault)
                log.warning("checkpoint %s is damaged (%s); it is kept, and an older one is tried", name, faults[name])
                self._damaged.add(name)
        if faults:
            told = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
            raise DataError(
                f"no checkpoint of {self._folder} can be read ({told}); put back a copy of {self._root}, "
                f"delete that folder to train from the start, or give the run another name (run.name=...)"
            )
        return None

    def data_fingerprint(self) -> str | None:
        """The version of the data set that the newest readable checkpoint was trained on; None where there is none."""
        for name in reversed(self._finished()):
            with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # named where the run is taken up
                return str(_object(self._checked(name, STATE)[STATE], STATE)["facts"]["data_fingerprint"])
        return None

    def _finished(self) -> list[str]:
        """Names of the checkpoints that were written to their end, oldest first."""
        finished = [
            name
            for name in self._storage.list(self._root)
            if re.fullmatch(r"step-\d{8,}", name) and self._storage.exists(join(self._root, name, CHECKSUMS))
        ]
        return sorted(finished, key=lambda name: int(name.removeprefix("step-")))

    def _write(self, arrays: dict[str, np.ndarray], state: str, recipe: str, step: int, protected: set[str]) -> None:
        name = _name(step)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        files = {ARRAYS: buffer.getvalue(), STATE: state.encode(), RECIPE_NAME: recipe.encode()}
        sums = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
        for file, data in (files | {CHECKSUMS: json.dumps(sums, indent=1).encode()}).items():
            write_while(self._check_owner, join(self._root, name, file), data, self._storage)
        self._damaged.discard(name)
        self.saved_step = step
        self._prune(protected)

    def _prune(self, protected: set[str]) -> None:
        """Delete finished checkpoints beyond the newest `keep`; the best and anything unfinished or damaged stay."""
        whole = [name for name in self._finished() if name not in self._damaged]
        for name in whole[: -self._keep]:
            if name not in protected:
                self._check_owner()
                # Checksums first: a deletion cut short leaves an unfinished folder, not a damaged checkpoint.
                self._storage.delete(join(self._root, name, CHECKSUMS))
                self._storage.delete(join(self._root, name))

    def _read(self, name: str) -> Checkpoint:
        files = self._checked(name, ARRAYS, STATE, RECIPE_NAME)
        cursor, facts = self._state(name, files)
        arrays = read_arrays(files[ARRAYS])
        self.saved_step = max(self.saved_step, cursor.step)
        return Checkpoint(arrays, cursor, facts)

    def _state(self, name: str, files: Mapping[str, bytes]) -> tuple[Cursor, dict[str, Any]]:
        """Cursor and facts. Raises UserError where a newer segtrain wrote them: an older one cannot replace it."""
        state = _object(files[STATE], STATE)
        version = state.get("format_version", 1)  # the first ones did not say it
        if version != FORMAT_VERSION:
            raise self._newer(name, f"has format version {str(version)[:20]}; this segtrain reads {FORMAT_VERSION}")
        known = {field.name for field in fields(Cursor)}
        cursor, facts = state["cursor"], state["facts"]
        if not isinstance(cursor, dict) or not isinstance(facts, dict):
            raise ValueError(f"{STATE} holds no cursor and facts")
        unknown = [*(set(state) - {"format_version", "cursor", "facts"}), *(set(cursor) - known)]
        if unknown:
            raise self._newer(name, f"has the field {min(unknown)[:80]}, which this segtrain does not know")
        return _cursor(cursor, name), facts

    def _newer(self, name: str, what: str) -> UserError:
        return UserError(
            f"the checkpoint {join(self._root, name)} {what}; go on with the segtrain that wrote it, "
            f"or give the run another name (run.name=...)"
        )

    def _checked(self, name: str, *wanted: str) -> dict[str, bytes]:
        """A checkpoint's files by their names. Raises ValueError where one differs from its checksum."""
        folder = join(self._root, name)
        sums = _object(self._storage.read_bytes(join(folder, CHECKSUMS)), CHECKSUMS)
        files = {file: self._storage.read_bytes(join(folder, file)) for file in wanted}
        for file, data in files.items():
            if hashlib.sha256(data).hexdigest() != sums.get(file):
                raise ValueError(f"the sha256 of {file} is not the recorded one")
        known = {ARRAYS, STATE, RECIPE_NAME}
        unknown = set(sums) - known
        if unknown and known <= set(sums):  # else it is a name that was damaged
            raise self._newer(name, f"has the file {min(unknown)[:80]}, which this segtrain does not know")
        return files


def read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an `arrays.npz`.

    Raises ValueError for anything else than what `numpy.savez` writes of plain arrays. An array's declared size is
    compared with its bytes in the file first, so a damaged or foreign file cannot make this take more memory.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {one.filename.removesuffix(".npy"): _array(archive, one) for one in archive.infolist()}
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, struct.error) as fault:
        raise ValueError(f"{ARRAYS} is no archive of arrays ({fault})") from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError(f"{ARRAYS} holds {member.filename} packed")
    stored = io.BytesIO(archive.read(member))
    try:
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(stored)]
        shape, _, dtype = read_header(stored)
    except (KeyError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError):
        raise ValueError(f"{ARRAYS} holds {member.filename}, which is no array") from None
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(stored.getbuffer()) - stored.tell():
        raise ValueError(f"{ARRAYS} holds {member.filename}, whose size is not that of its shape {shape}")
    stored.seek(0)
    return np.asarray(np.lib.format.read_array(stored, allow_pickle=False))


def _cursor(tree: dict[str, Any], name: str) -> Cursor:
    """The cursor from JSON. Raises ValueError for fields of the wrong kind, and where its step is not the folder's."""
    cursor = TypeAdapter(Cursor).validate_python(tree)
    if _name(cursor.step) != name or min(cursor.epoch, cursor.step_in_epoch, cursor.step, cursor.best_step) < 0:
        raise ValueError(f"the cursor in {STATE} is not of this step")
    if cursor.best_epoch and not {"dice_hard_original", "dice_soft", "iou_hard_original"} <= set(cursor.best_metrics):
        raise ValueError(f"the cursor in {STATE} has no scores of its best epoch")
    return cursor


def _object(data: bytes, file: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else."""
    found = read_json(data)
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object")
    return found


def _told(fault: Exception) -> str:
    """A fault in a line, without what pydantic adds to it."""
    match fault:
        case ValidationError():
            first = fault.errors()[0]
            return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        case FileNotFoundError():
            return f"{str(fault.filename).rpartition('/')[2]} is gone"
        case KeyError():
            return f"{fault} is missing"
        case _:
            return str(fault).partition("\n")[0][:200]


def _name(step: int) -> str:
    return f"step-{step:08d}"

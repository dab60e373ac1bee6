"""The record of a run: `metrics.jsonl`, TensorBoard files, and what a watcher is told while it runs."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from segtrain.storage import Storage, is_remote, join


class Record:
    """Appends to `metrics.jsonl` and TensorBoard in the run's folder; a remote folder gets its copy at `flush`.

    Lines of kind `step` and `epoch`. After a resume the lines beyond the checkpoint are dropped, so the file reads
    like that of an undisturbed run.
    """

    def __init__(self, folder: str, storage: Storage, *, resumed_step: int) -> None:
        self._storage = storage
        self._remote = folder if is_remote(folder) else None
        self._local = Path(tempfile.mkdtemp(prefix="segtrain-record-")) if self._remote else Path(folder)
        self._path = self._local / "metrics.jsonl"
        self._local.mkdir(parents=True, exist_ok=True)
        if self._remote and storage.exists(join(folder, "metrics.jsonl")):
            self._path.write_bytes(storage.read_bytes(join(folder, "metrics.jsonl")))
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step_of(line) <= resumed_step]
        self._path.write_text("".join(f"{line}\n" for line in kept))
        self._lines = self._path.open("a")
        self._events = tf.summary.create_file_writer(str(self._local / "tensorboard"))

    def step(self, **values: Any) -> None:
        """One line for one optimizer step."""
        self._lines.write(json.dumps({"kind": "step", **values}) + "\n")

    def epoch(self, step: int, values: Mapping[str, Any], panels: Mapping[str, np.ndarray]) -> None:
        """One line for one epoch, its numbers as TensorBoard scalars, its panels (uint8 (H, W, 3)) as images."""
        self._lines.write(json.dumps({"kind": "epoch", "step": step, **values}) + "\n")
        with self._events.as_default(step=step):
            for name, value in values.items():
                if isinstance(value, int | float):
                    tf.summary.scalar(name, value)
            for name, panel in sorted(panels.items()):
                tf.summary.image(f"panels/{name}", panel[None])
        self.flush()

    def flush(self) -> None:
        """Everything written so far is in the run's folder when this returns."""
        self._lines.flush()
        self._events.flush()
        if self._remote:
            for path in [self._path, *sorted((self._local / "tensorboard").iterdir())]:
                self._storage.write_file(join(self._remote, *path.relative_to(self._local).parts), path)

    def close(self) -> None:
        """Flush and release the files."""
        self.flush()
        self._lines.close()
        self._events.close()


def _step_of(line: str) -> float:
    """The step of a line; a line cut off by a kill counts as beyond any step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


@dataclass(frozen=True)
class Progress:
    """A moment of a run, for a progress bar or a line of text."""

    phase: str
    """`starting`, `training`, `evaluating` or `done`."""
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps_per_epoch: int = 0
    images_per_s: float = 0.0
    loss: float = 0.0
    dice: float = 0.0
    """Soft dice of the epoch's pictures so far; hard dice at original resolution once evaluated."""
    left_s: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class RunSummary:
    """What a finished run came to: the best epoch's scores on the validation fold."""

    folder: str
    epoch: int
    dice_hard_original: float
    dice_soft: float
    iou_hard_original: float
    train_seconds: float
    images_per_s: float
    stopped_early: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

"""The record of a run: `metrics.jsonl` and TensorBoard files."""

import json
import tempfile
from collections.abc import Mapping
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

"""The record of a run: `metrics.jsonl` and TensorBoard files."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from segtrain.errors import UserError
from segtrain.scratch import scratch_folder
from segtrain.storage import Storage, is_remote, join, local_path


class Record:
    """Appends to `metrics.jsonl` and TensorBoard in the run's folder; a remote folder gets its copy at `flush`.

    Lines of kind `step` and `epoch`. After a resume the lines beyond the checkpoint are dropped, so the file reads
    like that of an undisturbed run.
    """

    def __init__(self, folder: str, storage: Storage, *, resumed_step: int) -> None:
        self._storage = storage
        self._remote = folder if is_remote(folder) else None
        self._scratch = contextlib.ExitStack()
        self._local = self._scratch.enter_context(scratch_folder("record")) if self._remote else local_path(folder)
        self._path = self._local / "metrics.jsonl"
        try:
            lines = storage.read_bytes(join(folder, "metrics.jsonl")).splitlines()
        except FileNotFoundError:
            lines = []
        kept = [line for line in lines if _step_of(line) <= resumed_step]
        storage.write_bytes(str(self._path), b"".join(line + b"\n" for line in kept))
        if (self._local / "tensorboard").is_file():
            raise UserError(f"{self._local / 'tensorboard'} is a file where a folder is needed; move it away")
        self._lines = self._path.open("a")
        self._events = tf.summary.create_file_writer(str(self._local / "tensorboard"))
        self._uploaded_bytes: dict[Path, int] = {}

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
                size = path.stat().st_size  # these files only grow
                if self._uploaded_bytes.get(path) != size:
                    self._storage.write_file(join(self._remote, *path.relative_to(self._local).parts), path)
                    self._uploaded_bytes[path] = size

    def close(self) -> None:
        """Flush and release the files."""
        try:
            self.flush()
        finally:
            self._lines.close()
            self._events.close()
            self._scratch.close()


def _step_of(line: bytes) -> float:
    """The step of a line; a line cut off by a kill counts as beyond any step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")

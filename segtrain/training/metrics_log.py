"""The record of a run: `metrics.jsonl` and TensorBoard files."""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from segtrain.errors import UserError
from segtrain.runs.ownership import write_while
from segtrain.runs.run_folder import METRICS_LOG_NAME, RunFolder
from segtrain.storage.files import Storage, is_remote, join, local_path
from segtrain.storage.json_text import read_json
from segtrain.storage.scratch import scratch_folder

log = logging.getLogger(__name__)


class Record:
    """Appends lines of kind `step` and `epoch` to `metrics.jsonl`, and writes TensorBoard's files beside it.

    A remote folder gets its copy at `flush`. When a run goes on from a checkpoint, the lines of later steps are
    dropped, so the file reads like that of an undisturbed run.
    """

    def __init__(
        self, folder: str, storage: Storage, *, resumed_step: int, owned: Callable[[], None] = lambda: None
    ) -> None:
        """`owned` raises once the folder is another process's; nothing is written there then."""
        self._storage = storage
        self._owned = owned
        self._remote = folder if is_remote(folder) else None
        self._open = contextlib.ExitStack()
        self._local = self._open.enter_context(scratch_folder("record")) if self._remote else local_path(folder)
        self._path = self._local / METRICS_LOG_NAME
        events = self._local / "tensorboard"
        if events.exists() and not events.is_dir():
            raise UserError(f"{events} is a file, where TensorBoard's folder belongs; move it away")
        stored = storage.read_if_there(RunFolder(folder).metrics_log) or b""
        lines = stored.splitlines()
        kept = [line for line in lines if _step_of(line) <= resumed_step]
        torn = bool(stored) and not stored.endswith(b"\n")  # as a kill leaves the last line
        broken = sum(map(math.isinf, map(_step_of, lines[:-1] if torn else lines)))
        if broken:
            log.warning("%s: %d lines are damaged and dropped", RunFolder(folder).metrics_log, broken)
        write_while(owned, str(self._path), b"".join(line + b"\n" for line in kept), storage)
        self._lines = self._open.enter_context(self._path.open("a"))
        owned()  # else these may be another's lines: whoever takes over from now on puts a new file in their place
        self._events = tf.summary.create_file_writer(str(events))
        self._open.callback(self._events.close)
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
                if self._uploaded_bytes.get(path) == size:
                    continue
                url = join(self._remote, *path.relative_to(self._local).parts)
                if path == self._path:
                    write_while(self._owned, url, path.read_bytes(), self._storage)
                else:  # TensorBoard gives each process a file of its own
                    self._storage.write_file(url, path)
                self._uploaded_bytes[path] = size

    def close(self) -> None:
        """Flush and release the files."""
        with self._open:
            self.flush()


def _step_of(line: bytes) -> float:
    """The step of a line; a line cut off by a kill counts as beyond any step."""
    try:
        return float(read_json(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return float("inf")

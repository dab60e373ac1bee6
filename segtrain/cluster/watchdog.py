"""Notices that a worker ends no more steps, and says where each of its threads is."""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

LOOK_EVERY_S = 1.0
"""Or every twentieth of a shorter deadline."""


@dataclass(frozen=True)
class Stuck:
    """A worker that has ended no step within its deadline."""

    seconds: float
    where: str
    """The innermost line of the training thread, `file:line in function`."""
    in_tensorflow: bool
    """It waits in TensorFlow: most often for another worker."""
    stacks: str
    """Of all threads, the training thread first."""


class Watchdog:
    """A thread that calls `on_stuck` once if `beat` is not called within `deadline_s` seconds. A context manager.

    Before the first beat it waits for `first_s`, where that is longer. It watches the thread that made it. `on_stuck`
    is called in the watchdog's own thread, since the one that is stuck may never run again.
    """

    def __init__(self, deadline_s: float, on_stuck: Callable[[Stuck], None], *, first_s: float) -> None:
        self._deadline_s = deadline_s
        self._limit_s = max(first_s, deadline_s)
        self._on_stuck = on_stuck
        self._watched = threading.get_ident()
        self._beat_at = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="segtrain-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def beat(self) -> None:
        """Something has ended; the next thing has `deadline_s` seconds."""
        self._beat_at = time.monotonic()
        self._limit_s = self._deadline_s

    def _watch(self) -> None:
        while not self._done.wait(min(LOOK_EVERY_S, self._deadline_s / 20)):
            seconds = time.monotonic() - self._beat_at
            if seconds > self._limit_s:
                self._on_stuck(self._stuck(seconds))
                return

    def _stuck(self, seconds: float) -> Stuck:
        frames = sys._current_frames()
        frame = frames.get(self._watched)
        where = "a thread that has ended" if frame is None else _place(frame)
        in_tensorflow = frame is not None and "tensorflow" in Path(frame.f_code.co_filename).parts
        return Stuck(seconds, where, in_tensorflow, _stacks(frames, self._watched))


def _place(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_lineno} in {frame.f_code.co_name}"


def _stacks(frames: dict[int, FrameType], first: int) -> str:
    """The stacks of all threads with their names, as a traceback shows them."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    order = sorted(frames, key=lambda ident: ident != first)
    return "\n".join(
        f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frames[ident]))}" for ident in order
    )

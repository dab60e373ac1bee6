"""What a run's workers tell its driver, and what it asks of them. Kept in a process of its own, as a Ray actor."""

import time
from dataclasses import dataclass

from segtrain.cluster.watchdog import Stuck
from segtrain.runs.status import Progress


@dataclass(frozen=True)
class Began:
    """A worker's training function has been called."""

    rank: int
    node_id: str
    """Ray's name for the machine."""
    host: str


@dataclass(frozen=True)
class StuckWorker:
    """What a worker's watchdog has found; its process ends itself."""

    rank: int
    stuck: Stuck


Told = Progress | Began | StuckWorker | str
"""A text is a line for the user."""


class Mailbox:
    """What has been told and nobody has read yet, and whether the workers should leave."""

    def __init__(self) -> None:
        self._told: list[tuple[int, Told]] = []
        self._number = 0
        self._leave = False

    def put(self, told: Told) -> None:
        """Keep what a worker tells. Of moments within an epoch only the newest is kept."""
        if self._told and _same_stretch(self._told[-1][1], told):
            self._told.pop()
        # Of the clock, so that they grow even if this process is started again.
        self._number = max(self._number + 1, time.time_ns())
        self._told.append((self._number, told))

    def take(self, read: int) -> list[tuple[int, Told]]:
        """Number and message of everything beyond number `read`, oldest first; up to there it is forgotten.

        So an answer that does not arrive is given again.
        """
        self._told = [(number, told) for number, told in self._told if number > read]
        return self._told

    def ask_to_leave(self) -> None:
        """Let the workers save and leave at the next step that they can agree on."""
        self._leave = True

    def wants_to_leave(self) -> bool:
        """What the workers ask again and again."""
        return self._leave


def _same_stretch(one: Told, other: Told) -> bool:
    """Whether both are moments of one epoch's training."""
    return (
        isinstance(one, Progress)
        and isinstance(other, Progress)
        and one.phase == other.phase == "training"
        and one.epoch == other.epoch
    )

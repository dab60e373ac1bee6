"""What a run's workers tell its driver, and what it asks of them. Kept in a process of its own, as a Ray actor."""

from dataclasses import dataclass

from segtrain.training.status import Progress
from segtrain.training.watchdog import Stuck


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
        self._told: list[Told] = []
        self._leave = False

    def put(self, told: Told) -> None:
        """Keep what a worker tells. Of moments within an epoch only the newest is kept."""
        if self._told and _same_stretch(self._told[-1], told):
            self._told.pop()
        self._told.append(told)

    def take(self) -> list[Told]:
        """Everything since the last call, oldest first."""
        told, self._told = self._told, []
        return told

    def ask_to_leave(self) -> None:
        """Let the workers save and leave at the next step that they can agree on."""
        self._leave = True

    def wants_to_leave(self) -> bool:
        """What the workers ask again and again."""
        return self._leave


def _same_stretch(one: Told, other: Told) -> bool:
    """Whether both are moments of one epoch's training."""
    if not isinstance(one, Progress) or not isinstance(other, Progress):
        return False
    return one.phase == other.phase == "training" and one.epoch == other.epoch

"""When the results of steps are read: several at once, so that a GPU never waits for the host.

Reading a value waits for every step that has been started. So the newest step stays unread while the ones before it are
read in one copy. When that happens follows from the number of steps and from what their sums carried. All workers
therefore read at the same step, and what they learn there they learn together.
"""

from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_STEPS = 16
MOST_SECONDS = 0.5


class Unread(Generic[T]):
    """Steps that have been started and whose results have not been read, oldest first."""

    def __init__(self) -> None:
        self._steps: list[T] = []
        self._at_once = 1
        """Steps to read at once: 1 until their time is known."""

    def add(self, step: T) -> None:
        """A step has been started."""
        self._steps.append(step)

    def due(self) -> Sequence[T]:
        """Take the steps to read now: none, or all but the newest."""
        if len(self._steps) <= self._at_once:
            return []
        due, self._steps = self._steps[:-1], self._steps[-1:]
        return due

    def rest(self) -> Sequence[T]:
        """Take all steps: before a checkpoint, and at the end of an epoch."""
        rest, self._steps = self._steps, []
        return rest

    def learn(self, step_s: float) -> None:
        """Read as many steps at once as take half a second, 16 at most.

        step_s: seconds a step as all workers have summed them up, so that it is the same number everywhere.
        """
        self._at_once = MOST_STEPS if step_s * MOST_STEPS <= MOST_SECONDS else max(int(MOST_SECONDS / step_s), 1)

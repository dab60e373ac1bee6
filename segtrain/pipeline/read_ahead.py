"""Row groups on their way: read in the order of need, as far ahead of it as a bound in bytes allows."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import count

import numpy as np

from segtrain.dataset.shards import Row
from segtrain.pipeline.plan import EpochPlan, Int64, RowGroupTable, Sample

AHEAD_BYTES, AHEAD_LANES = 256 * 2**20, 16
"""What a worker reads ahead and holds by default, and for how many lanes that is enough: two row groups of 8 MiB each.
More lanes would leave no room to read ahead, as each holds a row group."""

Rows = list[Row | None]
Key = tuple[int, int]
"""(epoch, row group's index in the plan's table)."""


def default_limit_bytes(table: RowGroupTable, lanes: int) -> int:
    """Most stored bytes that a worker with so many lanes reads ahead and holds, where the recipe does not say."""
    return AHEAD_BYTES + max(0, lanes - AHEAD_LANES) * int(table.bytes.mean())


class Outstanding:
    """What one worker still has to read, from a step of an epoch on. For one thread."""

    def __init__(self, make_plan: Callable[[int], EpochPlan], epoch: int, step: int, worker: int, workers: int) -> None:
        self._make_plan = make_plan
        self._first = (epoch, step)
        self._share = (worker, workers)
        self._plans: dict[int, EpochPlan] = {}
        self._left: dict[int, Int64] = {}

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of an epoch, made when it is first asked for."""
        if epoch not in self._plans:
            self._plans[epoch] = self._make_plan(epoch)
            self._left[epoch] = self._plans[epoch].outstanding(self._step(epoch), *self._share)
        return self._plans[epoch]

    def reads(self) -> Iterator[Key]:
        """Every row group of this epoch, the next, and so on, in the order of need."""
        for epoch in count(self._first[0]):
            for _, group in self.plan(epoch).reads(self._step(epoch), *self._share):
                yield epoch, group

    def is_left(self, key: Key) -> bool:
        """Whether samples of a row group are still to come in the epoch."""
        epoch, group = key
        return epoch in self._left and bool(self._left[epoch][group] > 0)

    def finish(self, epoch: int, samples: Sequence[Sample]) -> list[Key]:
        """Count samples as asked for; returns the row groups of which these were the last."""
        left, groups = self._left[epoch], np.array([group for group, _ in samples], np.int64)
        np.subtract.at(left, groups, 1)
        return [(epoch, group) for group in np.unique(groups).tolist() if left[group] == 0]

    def forget(self, epoch: int) -> None:
        """Let go of an epoch that is over."""
        del self._plans[epoch], self._left[epoch]

    def _step(self, epoch: int) -> int:
        return self._first[1] if epoch == self._first[0] else 0


class ReadAhead:
    """Holds the row groups of one worker from the start of their reading until their last picture has been asked for.

    For one thread. What is needed now is read in any case; the bound holds back only what is needed later.
    """

    def __init__(
        self,
        read: Callable[[int], Future[Rows]],
        size_bytes: Callable[[int], int],
        reads: Iterator[Key],
        is_needed: Callable[[Key], bool],
        limit_bytes: int,
    ) -> None:
        """`reads` names row groups in the order of need; `is_needed` says whether one still is when its turn comes."""
        self._read = read
        self._size_bytes = size_bytes
        self._reads = reads
        self._is_needed = is_needed
        self._limit_bytes = limit_bytes
        self._next = next(reads, None)
        self._under_way: dict[Key, Future[Rows]] = {}
        self.held_bytes = 0
        """Stored bytes of what is being read or held."""

    def rows(self, key: Key) -> Future[Rows]:
        """The rows of a row group, which is read now if it is not under way."""
        if key not in self._under_way:
            self._start(key)
        return self._under_way[key]

    def release(self, key: Key) -> None:
        """The last picture of a row group has been asked for; what still decodes keeps its rows alive."""
        if self._under_way.pop(key, None) is not None:
            self.held_bytes -= self._size_bytes(key[1])

    def fill(self, last_epoch: int) -> None:
        """Start reading ahead, to the end of `last_epoch` at most, until the bound is reached."""
        while self._next is not None and self._next[0] <= last_epoch:
            if self._next not in self._under_way and self._is_needed(self._next):
                if self.held_bytes + self._size_bytes(self._next[1]) > self._limit_bytes:
                    return
                self._start(self._next)
            self._next = next(self._reads, None)

    def _start(self, key: Key) -> None:
        self._under_way[key] = self._read(key[1])
        self.held_bytes += self._size_bytes(key[1])

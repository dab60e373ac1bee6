"""Who reads which sample at which step: pure functions of the manifest's facts and the seed, never of the worker count.

An epoch's order is made in five steps. (1) The row groups, and the samples inside each, are permuted and form one
virtual list. (2) The list is cut into `lanes` contiguous lanes, the first `samples % lanes` of them one longer.
(3) Within a lane, whole pieces of row groups form windows of up to `window_bytes`, and the samples of a window are
shuffled together. (4) Sample k of the epoch is lane `k % lanes`, position `k // lanes`; global batch t is samples
`[t * B, (t + 1) * B)`. (5) Worker w of W owns the lanes l with `l % W == w`.

Every random choice comes from a Philox stream keyed by a hash of (fingerprint, seed, epoch, purpose, number), so any
window can be drawn on its own: an epoch takes O(row groups) memory and resumes at any step in constant time.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Sample = tuple[int, int]
"""(row group's index in the table, kept row's index in the row group)."""


@dataclass(frozen=True)
class RowGroupTable:
    """What the plan must know of each training row group."""

    rows: Int64
    """Samples to train on, at least one each; rows that `data.max_groups` leaves out are not counted."""
    bytes: Int64
    """Stored bytes of the whole row group, which is what reading it costs."""

    def __post_init__(self) -> None:
        assert self.rows.shape == self.bytes.shape
        assert (self.rows > 0).all(), "a row group without a sample has no place in the plan"


@dataclass(frozen=True)
class BatchSplit:
    """How a worker's share of the global batch lies on its replicas; the same for every worker and step."""

    per_replica: int
    """Pictures a replica holds at once."""
    accumulation: int
    """Passes over `per_replica` pictures in one step."""
    slots: int
    """Largest share of a worker; `per_replica * accumulation * replicas` is at least this."""


class EpochPlan:
    """The order of one epoch's samples. Not safe to share between threads: windows in use are cached."""

    def __init__(
        self,
        fingerprint: str,
        seed: int,
        epoch: int,
        table: RowGroupTable,
        global_batch_size: int,
        lanes: int,
        window_bytes: int,
    ) -> None:
        self._table = table
        self._key = f"{fingerprint}/{seed}/{epoch}"
        self._batch = global_batch_size
        self._lanes = lanes
        self._window_bytes = window_bytes
        self._order: Int64 = self._generator("row groups", 0).permutation(table.rows.size)
        self._starts = np.concatenate(([0], np.cumsum(table.rows[self._order])))  # in the virtual list
        self._windows: dict[int, list[int]] = {}  # lane -> window boundaries in the virtual list
        self._in_use: dict[int, tuple[int, Int64]] = {}  # lane -> (window number, its samples)
        self.samples = int(self._starts[-1])
        self.steps = -(-self.samples // global_batch_size)

    def global_batch(self, step: int) -> list[Sample]:
        """The samples of global batch `step`, in order: `global_batch_size` of them, fewer in the last."""
        return self.worker_batch(step, worker=0, workers=1)

    def worker_batch(self, step: int, worker: int, workers: int) -> list[Sample]:
        """The part of global batch `step` that `worker` owns, in global order; at most `slots_per_worker` samples."""
        numbers = np.arange(step * self._batch, min((step + 1) * self._batch, self.samples))
        numbers = numbers[numbers % self._lanes % workers == worker]
        lanes, positions = numbers % self._lanes, numbers // self._lanes
        batch = np.empty((numbers.size, 2), np.int64)
        for lane in np.unique(lanes):
            mine = np.flatnonzero(lanes == lane)
            batch[mine] = self._lane_samples(int(lane), int(positions[mine[0]]), mine.size)
        return [(group, row) for group, row in batch.tolist()]

    def outstanding(self, step: int, worker: int, workers: int) -> Int64:
        """How many samples of each row group `worker` still has to come in this epoch, from `step` on: int64 (n,)."""
        left = np.zeros(self._table.rows.size, np.int64)
        for lane in range(worker, self._lanes, workers):
            start, stop = self._lane_range(lane)
            position = min(max(0, -(-(step * self._batch - lane) // self._lanes)), stop - start)
            if position == stop - start:
                continue
            window = self._window_of(lane, position)
            boundaries = self._boundaries(lane)
            samples = self._window_samples(lane, window)
            np.add.at(left, samples[start + position - boundaries[window] :, 0], 1)
            groups, _, counts = self._pieces(boundaries[window + 1], stop)
            left[groups] += counts
        return left

    def _lane_range(self, lane: int) -> tuple[int, int]:
        """Where a lane starts and stops in the virtual list."""
        length, longer = divmod(self.samples, self._lanes)
        start = lane * length + min(lane, longer)
        return start, start + length + (lane < longer)

    def _lane_samples(self, lane: int, position: int, count: int) -> Int64:
        """`count` samples of a lane from `position` on: int64 (count, 2)."""
        start, _ = self._lane_range(lane)
        boundaries = self._boundaries(lane)
        parts = []
        while count:
            window = self._window_of(lane, position)
            offset = start + position - boundaries[window]
            part = self._window_samples(lane, window)[offset : offset + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts)

    def _window_of(self, lane: int, position: int) -> int:
        return bisect_right(self._boundaries(lane), self._lane_range(lane)[0] + position) - 1

    def _boundaries(self, lane: int) -> list[int]:
        """Where a lane's windows start in the virtual list, and where the last one stops."""
        if lane not in self._windows:
            start, stop = self._lane_range(lane)
            boundaries, filled, at = [start], 0, start
            groups, _, counts = self._pieces(start, stop)
            for rows, size in zip(counts.tolist(), self._table.bytes[groups].tolist(), strict=True):
                if filled and filled + size > self._window_bytes:
                    boundaries.append(at)
                    filled = 0
                filled, at = filled + size, at + rows
            self._windows[lane] = [*boundaries, stop]
        return self._windows[lane]

    def _pieces(self, start: int, stop: int) -> tuple[Int64, Int64, Int64]:
        """What `[start, stop)` of the virtual list cuts from each row group, in order: (row group, first, count)."""
        if start == stop:
            return (np.empty(0, np.int64),) * 3
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        whole = self._starts[first : last + 2]
        cut = np.clip(whole, start, stop)
        return self._order[first : last + 1], cut[:-1] - whole[:-1], np.diff(cut)

    def _window_samples(self, lane: int, window: int) -> Int64:
        """The samples of a window in their shuffled order, int64 (count, 2); the lane's last window is remembered."""
        cached = self._in_use.get(lane)
        if cached is not None and cached[0] == window:
            return cached[1]
        start, stop = self._boundaries(lane)[window : window + 2]
        parts = []
        for group, first, count in np.stack(self._pieces(start, stop), axis=1).tolist():
            rows = self._generator("rows", group).permutation(self._table.rows[group])[first : first + count]
            parts.append(np.stack([np.full_like(rows, group), rows], axis=1))
        # A window's place in the virtual list is unique in the epoch, so it numbers the stream.
        samples: Int64 = self._generator("window", start).permutation(np.concatenate(parts))
        self._in_use[lane] = (window, samples)
        return samples

    def _generator(self, purpose: str, number: int) -> np.random.Generator:
        digest = hashlib.blake2b(f"{self._key}/{purpose}/{number}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def slots_per_worker(global_batch_size: int, lanes: int, workers: int) -> int:
    """The largest share of a global batch that any worker gets at any step of a long epoch."""
    assert 1 <= workers <= lanes
    rounds, rest = divmod(global_batch_size, lanes)
    owners = np.arange(2 * lanes) % lanes % workers
    whole_rounds = rounds * np.bincount(owners[:lanes])
    # Batch t starts at lane t * B mod lanes, which takes every multiple of gcd(B, lanes).
    starts = range(0, lanes, math.gcd(global_batch_size, lanes))
    shares = (whole_rounds + np.bincount(owners[first : first + rest], minlength=workers) for first in starts)
    return max(int(share.max()) for share in shares)


def batch_split(
    global_batch_size: int, lanes: int, workers: int, replicas_per_worker: int, per_replica_batch_size: int | None
) -> BatchSplit:
    """The smallest static shape that holds any worker's share on its replicas.

    At most `per_replica_batch_size` pictures (all of the share where it is None) lie on a replica at once; the rest
    is accumulated, in passes as equal as they can be.
    """
    slots = slots_per_worker(global_batch_size, lanes, workers)
    share = -(-slots // replicas_per_worker)
    accumulation = -(-share // (per_replica_batch_size or share))
    return BatchSplit(per_replica=-(-share // accumulation), accumulation=accumulation, slots=slots)


def sample_key(sample_id: str) -> int:
    """A stable hash of an id, in [0, 2**63): what a sample's own randomness is keyed by."""
    return int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest(), "little") >> 1


def kept_groups(groups: Iterable[str], max_groups: int | None, seed: int) -> frozenset[str]:
    """The groups to train on: the first `max_groups` in an order by keyed hash, so smaller sets lie in larger ones."""

    def order(group: str) -> bytes:
        return hashlib.blake2b(f"groups/{seed}/{group}".encode(), digest_size=16).digest()

    return frozenset(sorted(set(groups), key=order)[:max_groups])

"""Who reads which sample at which step: pure functions of the manifest's facts and the seed, never of the worker count.

An epoch's order is made in five steps:

1. The row groups, and the samples inside each, are permuted and form one virtual list.
2. The list is cut into `lanes` contiguous lanes, whose lengths differ by one at most.
3. Within a lane, whole pieces of row groups form windows of up to `window_bytes`. The samples of a window are shuffled.
4. Sample k of the epoch is lane `k % lanes`, position `k // lanes`. Global batch t is samples `[t * B, (t + 1) * B)`.
5. Worker w of W owns the lanes l with `l % W == w`. With more than 16 lanes, if B is a multiple of them, it owns
   lanes that follow each other in the list: a row group that is cut between them is read once.

Every random choice comes from a Philox stream keyed by a hash of (fingerprint, seed, epoch, purpose, number), so any
window can be drawn on its own: an epoch takes O(row groups) memory, and resuming at a step draws nothing before it.
"""

import hashlib
import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segtrain.config.batch_split import FEWEST_LANES

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
        self._starts = _starts(table.rows[self._order])  # of the row groups in the virtual list
        self._byte_starts = _starts(table.bytes[self._order])
        self._lane_starts, self._lane_lengths = _cut_lanes(self._starts, lanes)
        self._is_in_blocks = lanes > FEWEST_LANES and global_batch_size % lanes == 0
        self._blocks: dict[int, list[list[int]]] = {}  # number of workers -> the lanes of each
        self._windows: dict[int, list[int]] = {}  # lane -> window boundaries in the virtual list, as far as known
        self._in_use: dict[int, tuple[int, Int64]] = {}  # lane -> (where its window starts, the window's samples)
        self.samples = int(self._starts[-1])
        self.steps = -(-self.samples // global_batch_size)

    def worker_batch(self, step: int, worker: int, workers: int) -> list[Sample]:
        """The part of global batch `step` that `worker` owns, in global order; at most `slots_per_worker` samples.

        Worker 0 of 1 owns all of it: `global_batch_size` samples, fewer in the last batch.
        """
        start, stop = step * self._batch, min((step + 1) * self._batch, self.samples)
        lanes = self._lanes_of(worker, workers)
        rounds = np.arange(start // self._lanes, -(-stop // self._lanes))
        numbers = np.add.outer(rounds * self._lanes, lanes).ravel()
        numbers = numbers[(start <= numbers) & (numbers < stop)]
        batch = np.empty((numbers.size, 2), np.int64)
        for place, number in enumerate(numbers[: len(lanes)].tolist()):
            own = batch[place :: len(lanes)]  # the lanes take turns
            own[:] = self._lane_samples(number % self._lanes, number // self._lanes, len(own))
        return [(group, row) for group, row in batch.tolist()]

    def outstanding(self, step: int, worker: int, workers: int) -> Int64:
        """How many samples of each row group `worker` still has to come in this epoch, from `step` on: int64 (n,)."""
        left = np.zeros(self._table.rows.size, np.int64)
        for lane in self._lanes_of(worker, workers):
            at, end = self._rest_of_lane(lane, step)
            if at == end:
                continue
            start, stop = self._window(lane, at)
            np.add.at(left, self._cached_window(lane, start, stop)[at - start :, 0], 1)
            groups, _, counts = self._pieces(stop, end)
            left[groups] += counts
        return left

    def reads(self, step: int, worker: int, workers: int) -> Iterator[tuple[int, int]]:
        """What `worker` has to read from `step` on: (first step that needs it, row group), in the order of need.

        Each row group with samples outstanding comes once, also where two lanes of the worker share it. Windows are
        drawn as they are reached, one a lane at a time.
        """
        yielded = np.zeros(self._table.rows.size, bool)
        lane_reads = (self._lane_reads(lane, step) for lane in self._lanes_of(worker, workers))
        for number, group in heapq.merge(*lane_reads):
            if not yielded[group]:
                yielded[group] = True
                yield number // self._batch, group

    def _lanes_of(self, worker: int, workers: int) -> Sequence[int]:
        """The lanes that a worker owns, in ascending order; no two workers' numbers of them differ by more than one.

        Neighbours in the list may cut a row group between them. Where a worker owns neighbours, only those at its ends
        are read by two workers. That needs batches with the same number of samples of each lane, or shares would
        differ. Few lanes are dealt out by turns: they cut few row groups, and a worker gets short and long first
        windows.
        """
        if not self._is_in_blocks:
            return range(worker, self._lanes, workers)
        if workers not in self._blocks:
            self._blocks[workers] = self._cut_blocks(workers)
        return self._blocks[workers][worker]

    def _cut_blocks(self, workers: int) -> list[list[int]]:
        """The list of lanes in equal parts, in ascending order each; begun where the parts cut fewest row groups."""
        along_the_list = np.argsort(self._lane_starts, kind="stable")
        lane_starts = self._lane_starts[along_the_list]
        is_cut = self._starts[np.searchsorted(self._starts, lane_starts)] != lane_starts
        firsts = self._lanes * np.arange(workers) // workers
        turns = np.arange(-(-self._lanes // workers))
        cuts = is_cut[np.add.outer(turns, firsts) % self._lanes].sum(axis=1)
        turned = np.roll(along_the_list, -np.argmin(cuts))
        return [np.sort(part).tolist() for part in np.split(turned, firsts[1:])]

    def _lane_reads(self, lane: int, step: int) -> Iterator[tuple[int, int]]:
        """What one lane reads from `step` on: (number in the epoch of the first sample that needs it, row group)."""
        at, end = self._rest_of_lane(lane, step)
        while at < end:
            start, stop = self._window(lane, at)
            pieces, _, counts = self._pieces(start, stop)
            to_come = np.repeat(pieces, counts)[self._shuffle(start, stop)][at - start :]
            groups, firsts = np.unique(to_come, return_index=True)
            numbers = (at + firsts - self._lane_starts[lane]) * self._lanes + lane
            yield from sorted(zip(numbers.tolist(), groups.tolist(), strict=True))
            at = stop

    def _rest_of_lane(self, lane: int, step: int) -> tuple[int, int]:
        """Where in the virtual list the rest of a lane, from `step` on, starts and stops."""
        start, length = int(self._lane_starts[lane]), int(self._lane_lengths[lane])
        position = max(0, -(-(step * self._batch - lane) // self._lanes))
        return start + min(position, length), start + length

    def _lane_samples(self, lane: int, position: int, count: int) -> Int64:
        """`count` samples of a lane from `position` on: int64 (count, 2)."""
        at = int(self._lane_starts[lane]) + position
        parts = []
        while count:
            start, stop = self._window(lane, at)
            part = self._cached_window(lane, start, stop)[at - start : at - start + count]
            parts.append(part)
            at, count = at + len(part), count - len(part)
        return np.concatenate(parts)

    def _window(self, lane: int, at: int) -> tuple[int, int]:
        """Where the window of a lane that holds place `at` of the virtual list starts and stops there."""
        boundaries = self._windows.setdefault(lane, [int(self._lane_starts[lane])])
        while boundaries[-1] <= at:
            boundaries.append(self._window_stop(lane, boundaries[-1]))
        window = bisect_right(boundaries, at) - 1
        return boundaries[window], boundaries[window + 1]

    def _window_stop(self, lane: int, start: int) -> int:
        """Where the window of a lane that starts at place `start` stops: behind a row group, or with the lane."""
        first = np.searchsorted(self._starts, start, side="right") - 1
        bytes_before = self._byte_starts[first]
        stop = np.searchsorted(self._byte_starts, bytes_before + self._window_bytes, side="right") - 1
        if start == self._lane_starts[lane]:
            # First windows grow from lane to lane, so that the lanes do not all come to new row groups at once.
            share = self._window_bytes * (lane + 1) // self._lanes
            stop = min(stop, np.searchsorted(self._byte_starts, bytes_before + share))
        return min(int(self._starts[max(stop, first + 1)]), int(self._lane_starts[lane] + self._lane_lengths[lane]))

    def _pieces(self, start: int, stop: int) -> tuple[Int64, Int64, Int64]:
        """What `[start, stop)` of the virtual list cuts from each row group, in order: (row group, first, count)."""
        if start == stop:
            return (np.empty(0, np.int64),) * 3
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        whole = self._starts[first : last + 2]
        cut = whole.copy()
        cut[0], cut[-1] = start, stop
        return self._order[first : last + 1], cut[:-1] - whole[:-1], np.diff(cut)

    def _cached_window(self, lane: int, start: int, stop: int) -> Int64:
        """`_draw_window`, which is not drawn again while the lane stays in this window."""
        if lane not in self._in_use or self._in_use[lane][0] != start:
            self._in_use[lane] = (start, self._draw_window(start, stop))
        return self._in_use[lane][1]

    def _draw_window(self, start: int, stop: int) -> Int64:
        """The samples of a window in their shuffled order: int64 (stop - start, 2)."""
        parts = []
        for group, first, count in np.stack(self._pieces(start, stop), axis=1).tolist():
            rows = self._generator("rows", group).permutation(self._table.rows[group])[first : first + count]
            parts.append(np.stack([np.full_like(rows, group), rows], axis=1))
        return np.concatenate(parts)[self._shuffle(start, stop)]

    def _shuffle(self, start: int, stop: int) -> Int64:
        """In which order a window takes its samples of the virtual list: int64 (stop - start,)."""
        # A window's place in the virtual list is unique in the epoch, so it numbers the stream.
        return self._generator("window", start).permutation(stop - start)

    def _generator(self, purpose: str, number: int) -> np.random.Generator:
        digest = hashlib.blake2b(f"{self._key}/{purpose}/{number}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _starts(sizes: Int64) -> Int64:
    """Where things of these sizes, laid end to end, start, and where the last one ends: int64 (n + 1,)."""
    return np.concatenate(([0], np.cumsum(sizes)))


def _cut_lanes(starts: Int64, lanes: int) -> tuple[Int64, Int64]:
    """Where each lane starts in a virtual list of row groups, and its length: int64 (lanes,) each.

    `samples % lanes` of the lanes are one longer, and they are numbered first, because the last round of samples may
    not go round. Which parts along the list these are is free: they are chosen to let as many lanes as possible start
    with a row group, since one that is cut is read by two workers.
    """
    length, longer = divmod(int(starts[-1]), lanes)
    # After n parts, j of them longer, the list is cut at n * length + j. These (n, j) fall on the start of a row group:
    parts = np.arange(1, lanes)
    at_least, at_most = np.maximum(0, parts - (lanes - longer)), np.minimum(parts, longer)
    firsts = np.searchsorted(starts, parts * length + at_least)
    counts = np.searchsorted(starts, parts * length + at_most, side="right") - firsts
    parts = np.repeat(parts, counts)
    longer_parts = starts[np.repeat(firsts - _starts(counts)[:-1], counts) + np.arange(parts.size)] - parts * length
    # As many of them as can follow each other: neither the longer parts nor the others may become fewer.
    chain = _longest_chain(longer_parts, parts - longer_parts)
    added = np.diff([(0, 0), *chain, (longer, lanes - longer)], axis=0)
    lengths = np.repeat(np.tile([length + 1, length], len(added)), added.ravel())
    numbered = np.argsort(-lengths, kind="stable")
    return _starts(lengths)[numbered], lengths[numbered]


def _longest_chain(x: Int64, y: Int64) -> list[tuple[int, int]]:
    """The most points (x, y), all different, of which each is at least the one before it in both numbers."""
    order = np.lexsort((y, x))
    points = list(zip(x[order].tolist(), y[order].tolist(), strict=True))
    lowest: list[int] = []  # of each length of chain the lowest y that one ends in,
    ends: list[int] = []  # and the point where it does
    before: list[int] = []  # of each point the one before it in its chain
    for number, (_, height) in enumerate(points):
        rank = bisect_right(lowest, height)
        before.append(ends[rank - 1] if rank else -1)
        lowest[rank : rank + 1], ends[rank : rank + 1] = [height], [number]
    chain, number = [], ends[-1] if ends else -1
    while number >= 0:
        chain.append(points[number])
        number = before[number]
    return chain[::-1]


def sample_key(sample_id: str) -> int:
    """A stable hash of an id, in [0, 2**63): what a sample's own randomness is keyed by."""
    return int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest(), "little") >> 1


def kept_groups(groups: Iterable[str], max_groups: int | None, seed: int) -> frozenset[str]:
    """The groups to train on: the first `max_groups` in an order by keyed hash, so smaller sets lie in larger ones."""

    def order(group: str) -> bytes:
        return hashlib.blake2b(f"groups/{seed}/{group}".encode(), digest_size=16).digest()

    return frozenset(sorted(set(groups), key=order)[:max_groups])

"""Row groups are read in the order of need, within a bound that never holds back what is needed now."""

from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.pipeline.plan import EpochPlan, RowGroupTable
from segtrain.pipeline.read_ahead import Outstanding, ReadAhead, default_limit_bytes

SIZES = [5, 3, 4, 6, 2]


class Reads:
    """Notes what is read; every read is done at once."""

    def __init__(self) -> None:
        self.groups: list[int] = []

    def __call__(self, group: int) -> Future:
        self.groups.append(group)
        done: Future = Future()
        done.set_result([])
        return done


def read_ahead(limit_bytes: int, keys: list[tuple[int, int]], needed=lambda key: True) -> tuple[ReadAhead, Reads]:
    reads = Reads()
    return ReadAhead(reads, SIZES.__getitem__, iter(keys), needed, limit_bytes), reads


def test_reading_ahead_stops_at_the_bound_and_goes_on_after_a_release() -> None:
    ahead, reads = read_ahead(12, [(0, group) for group in range(5)])
    ahead.fill(last_epoch=0)
    assert (reads.groups, ahead.held_bytes) == ([0, 1, 2], 12)
    ahead.rows((0, 0))
    ahead.fill(last_epoch=0)
    assert reads.groups == [0, 1, 2]
    ahead.release((0, 0))
    assert ahead.held_bytes == 7
    ahead.fill(last_epoch=0)
    assert reads.groups == [0, 1, 2]  # 6 more would be 13
    ahead.release((0, 1))
    ahead.fill(last_epoch=0)
    assert (reads.groups, ahead.held_bytes) == ([0, 1, 2, 3, 4], 12)


def test_what_is_needed_now_is_read_whatever_the_bound_says() -> None:
    ahead, reads = read_ahead(0, [(0, group) for group in range(5)])
    ahead.fill(last_epoch=0)
    assert reads.groups == []
    first = ahead.rows((0, 3))
    assert ahead.rows((0, 3)) is first
    assert (reads.groups, ahead.held_bytes) == ([3], 6)


def test_what_is_under_way_or_no_longer_needed_is_not_read_again() -> None:
    ahead, reads = read_ahead(100, [(0, 0), (0, 1), (0, 2)], needed=lambda key: key != (0, 1))
    ahead.rows((0, 2))
    ahead.fill(last_epoch=0)
    assert reads.groups == [2, 0]


def test_reading_ahead_goes_no_further_than_the_epoch_that_is_named() -> None:
    ahead, reads = read_ahead(100, [(0, 0), (1, 0), (2, 0)])
    ahead.fill(last_epoch=1)
    assert len(reads.groups) == 2
    ahead.fill(last_epoch=2)
    assert len(reads.groups) == 3


def test_releasing_what_was_never_read_changes_nothing() -> None:
    ahead, _ = read_ahead(100, [])
    ahead.release((0, 4))
    assert ahead.held_bytes == 0


def plan_of(epoch: int) -> EpochPlan:
    rows = np.random.default_rng(1).integers(1, 6, 23)
    return EpochPlan("f", 0, epoch, RowGroupTable(rows, rows * 10), 7, 4, 60)


@given(worker=st.integers(0, 2), step=st.integers(0, 9), limit_bytes=st.sampled_from([0, 100, 10_000]))
def test_over_two_epochs_each_row_group_is_read_once_an_epoch_and_all_is_released(
    worker: int, step: int, limit_bytes: int
) -> None:
    left = Outstanding(plan_of, 0, step, worker, 3)
    reads: list[tuple[int, int]] = []
    epoch_now = [0]

    def read(group: int) -> Future:
        reads.append((epoch_now[0], group))
        return Future()

    ahead = ReadAhead(read, lambda group: 1, left.reads(), left.is_left, limit_bytes)
    for epoch in range(2):
        epoch_now[0] = epoch
        plan = left.plan(epoch)
        needed = set()
        for at in range(step if epoch == 0 else 0, plan.steps):
            ahead.fill(last_epoch=epoch)
            samples = plan.worker_batch(at, worker, 3)
            for group, _ in samples:
                needed.add(group)
                ahead.rows((epoch, group))
            for key in left.finish(epoch, samples):
                ahead.release(key)
        assert sorted(group for number, group in reads if number == epoch) == sorted(needed)
        assert ahead.held_bytes == 0
        left.forget(epoch)


def test_an_epoch_that_is_over_is_left_to_nobody() -> None:
    left = Outstanding(plan_of, 3, 0, 0, 1)
    left.plan(3)
    assert left.is_left((3, 0))
    left.forget(3)
    assert not left.is_left((3, 0))
    with pytest.raises(KeyError):
        left.finish(3, [(0, 0)])


def test_a_worker_with_many_lanes_may_hold_a_row_group_of_each_and_still_read_ahead() -> None:
    table = RowGroupTable(rows=np.full(512, 9), bytes=np.full(512, 8 * 2**20))
    assert default_limit_bytes(table, 1) == default_limit_bytes(table, 16) == 256 * 2**20
    assert default_limit_bytes(table, 256) - 256 * 8 * 2**20 >= 128 * 2**20

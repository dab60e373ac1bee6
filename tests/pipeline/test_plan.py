"""The order of samples: the same for any worker count and resume point, every sample once, different each epoch."""

import math
import time
from itertools import combinations, islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.config.batch_split import lanes_for, slots_per_worker
from segtrain.pipeline.plan import EpochPlan, RowGroupTable, Sample, kept_groups

WORLDS = (1, 2, 3, 4, 7, 8)


def make_table(rows: list[int], row_bytes: int = 10) -> RowGroupTable:
    counts = np.array(rows, np.int64)
    return RowGroupTable(rows=counts, bytes=counts * row_bytes)


def make_plan(rows: list[int], batch: int = 5, lanes: int = 8, window_bytes: int = 100, epoch: int = 0) -> EpochPlan:
    return EpochPlan("abc", 1, epoch, make_table(rows), batch, lanes, window_bytes)


def lane_of(plan: EpochPlan, lane: int, lanes: int) -> list[Sample]:
    """One lane's samples in order: a worker that owns that lane alone reads just these."""
    return [sample for step in range(plan.steps) for sample in plan.worker_batch(step, lane, lanes)]


def every_sample(rows: list[int]) -> list[Sample]:
    return [(group, row) for group, count in enumerate(rows) for row in range(count)]


ROWS = [3, 1, 7, 4, 4, 9, 2, 6, 5, 8, 1, 3]


@pytest.mark.parametrize("workers", WORLDS)
def test_workers_together_read_the_same_sequence_for_any_number_of_them(workers: int) -> None:
    plan = make_plan(ROWS)
    for step in range(plan.steps):
        shares = [plan.worker_batch(step, worker, workers) for worker in range(workers)]
        owners = np.arange(step * 5, min((step + 1) * 5, plan.samples)) % 8 % workers
        merged = [shares[owner].pop(0) for owner in owners]
        assert merged == make_plan(ROWS).worker_batch(step, 0, 1)
        assert not any(shares)


def test_resuming_at_any_step_continues_the_same_sequence() -> None:
    plan = make_plan(ROWS)
    batches = [plan.worker_batch(step, 0, 1) for step in range(plan.steps)]
    for start in range(plan.steps):
        resumed = make_plan(ROWS)
        assert [resumed.worker_batch(step, 0, 1) for step in range(start, plan.steps)] == batches[start:]


@settings(max_examples=60)
@given(
    rows=st.lists(st.integers(1, 12), min_size=1, max_size=25),
    batch=st.integers(1, 20),
    lanes=st.integers(1, 20),
    window_bytes=st.integers(1, 400),
    data=st.data(),
)
def test_every_sample_comes_exactly_once_an_epoch(
    rows: list[int], batch: int, lanes: int, window_bytes: int, data: st.DataObject
) -> None:
    workers = data.draw(st.integers(1, lanes))
    plan = make_plan(rows, batch, lanes, window_bytes)
    assert plan.steps == math.ceil(sum(rows) / batch)
    shares = [plan.worker_batch(step, worker, workers) for step in range(plan.steps) for worker in range(workers)]
    assert sorted(sample for share in shares for sample in share) == every_sample(rows)
    assert max(map(len, shares)) <= slots_per_worker(batch, lanes, workers)


@settings(max_examples=40)
@given(
    rows=st.lists(st.integers(1, 12), min_size=1, max_size=25),
    lanes=st.integers(1, 9),
    window_bytes=st.integers(1, 400),
    data=st.data(),
)
def test_what_is_outstanding_is_what_the_remaining_steps_bring(
    rows: list[int], lanes: int, window_bytes: int, data: st.DataObject
) -> None:
    workers = data.draw(st.integers(1, lanes))
    worker = data.draw(st.integers(0, workers - 1))
    plan = make_plan(rows, 5, lanes, window_bytes)
    start = data.draw(st.integers(0, plan.steps))
    expected = np.zeros(len(rows), np.int64)
    for step in range(start, plan.steps):
        for group, _ in plan.worker_batch(step, worker, workers):
            expected[group] += 1
    np.testing.assert_array_equal(plan.outstanding(start, worker, workers), expected)


@settings(max_examples=80)
@given(
    rows=st.lists(st.integers(1, 12), min_size=1, max_size=25),
    batch=st.integers(1, 20),
    lanes=st.integers(1, 9),
    window_bytes=st.integers(1, 400),
    data=st.data(),
)
def test_reads_name_each_row_group_once_at_the_first_step_that_needs_it_in_that_order(
    rows: list[int], batch: int, lanes: int, window_bytes: int, data: st.DataObject
) -> None:
    workers = data.draw(st.integers(1, lanes))
    worker = data.draw(st.integers(0, workers - 1))
    plan = make_plan(rows, batch, lanes, window_bytes)
    start = data.draw(st.integers(0, plan.steps))
    reads = plan.reads(start, worker, workers)
    first_steps: dict[int, int] = {}
    for step in range(start, plan.steps):
        for group, _ in plan.worker_batch(step, worker, workers):
            if group not in first_steps:
                first_steps[group] = step
                assert next(reads) == (step, group)  # while batches are taken from the same plan
    assert list(reads) == []
    assert set(first_steps) == set(np.flatnonzero(plan.outstanding(start, worker, workers)))


def test_the_first_reads_take_no_longer_in_a_long_epoch() -> None:
    rows = np.full(1_000_000, 100, np.int64)  # all reads of one worker together take a minute
    plan = EpochPlan("abc", 0, 0, RowGroupTable(rows=rows, bytes=rows * 80_000), 16, 16, 16 * 2**20)
    began = time.process_time()
    first = [step for step, _ in islice(plan.reads(0, 0, 1), 100)]
    assert time.process_time() - began < 0.5
    assert first == sorted(first)


def test_epochs_seeds_and_data_sets_have_different_orders() -> None:
    def order(fingerprint: str, seed: int, epoch: int) -> list[Sample]:
        plan = EpochPlan(fingerprint, seed, epoch, make_table(ROWS), 5, 8, 100)
        return [sample for step in range(plan.steps) for sample in plan.worker_batch(step, 0, 1)]

    orders = [order("abc", 1, 0), order("abc", 1, 1), order("abc", 2, 0), order("abd", 1, 0)]
    assert all(left != right for at, left in enumerate(orders) for right in orders[:at])
    assert order("abc", 1, 0) == orders[0]


def test_lanes_are_contiguous_and_the_longer_ones_are_numbered_first() -> None:
    rows, lanes = [5, 5, 5, 5, 2], 4  # 22 samples: two lanes of 6, two of 5
    plan = make_plan(rows, batch=3, lanes=lanes)
    by_lane = [lane_of(plan, lane, lanes) for lane in range(lanes)]
    assert [len(lane) for lane in by_lane] == [6, 6, 5, 5]
    # Contiguous: a lane of 6 touches three row groups at most, and a row group of 5 spreads over two lanes at most.
    assert max(len({group for group, _ in lane}) for lane in by_lane) <= 3
    for group in range(len(rows)):
        assert sum(any(sample[0] == group for sample in lane) for lane in by_lane) <= 2


def row_groups_read(plan: EpochPlan, workers: int) -> int:
    return sum(len(list(plan.reads(0, worker, workers))) for worker in range(workers))


def test_lanes_start_with_a_row_group_where_they_can_in_a_worked_example() -> None:
    # 30 samples in lanes of 7 and 8: cut at 7 or 8, 14, 15 or 16, 22 or 23. A row group of 3 starts at 15 alone, so two
    # of the ten are cut and read twice.
    assert row_groups_read(make_plan([3] * 10, lanes=4), workers=4) == 12


@settings(max_examples=60)
@given(rows=st.integers(1, 9), groups=st.integers(1, 20), lanes=st.integers(1, 9))
def test_no_other_choice_of_longer_lanes_cuts_fewer_row_groups(rows: int, groups: int, lanes: int) -> None:
    lanes = min(lanes, rows * groups)
    length, longer = divmod(rows * groups, lanes)

    def cuts(long_parts: tuple[int, ...]) -> int:
        ends = np.cumsum([length + (part in long_parts) for part in range(lanes)])
        return int(np.count_nonzero(ends % rows))

    fewest = min(cuts(long_parts) for long_parts in combinations(range(lanes), longer))
    assert row_groups_read(make_plan([rows] * groups, lanes=lanes), workers=lanes) == groups + fewest


def test_global_batches_deal_the_lanes_round_robin_in_a_worked_example() -> None:
    # 7 samples in 3 lanes of 3, 2, 2: sample k is lane k % 3, position k // 3.
    plan = make_plan([2, 2, 3], batch=4, lanes=3)
    a, b, c = (lane_of(make_plan([2, 2, 3], 4, 3), lane, 3) for lane in range(3))
    assert plan.steps == 2
    assert plan.worker_batch(0, 0, 1) == [a[0], b[0], c[0], a[1]]
    assert plan.worker_batch(1, 0, 1) == [b[1], c[1], a[2]]
    assert plan.worker_batch(0, worker=0, workers=2) == [a[0], c[0], a[1]]  # lanes 0 and 2
    assert plan.worker_batch(1, worker=1, workers=2) == [b[1]]


def test_a_window_holds_whole_pieces_up_to_its_bytes() -> None:
    # One lane, row groups of 50 bytes, windows of 100: samples come two row groups at a time, shuffled together.
    rows = [5] * 6
    order = lane_of(make_plan(rows, batch=5, lanes=1, window_bytes=100), 0, 1)
    windows = [order[at : at + 10] for at in range(0, 30, 10)]
    assert [len({group for group, _ in window}) for window in windows] == [2, 2, 2]
    assert any([group for group, _ in window] != sorted(group for group, _ in window) for window in windows)


def test_first_windows_grow_from_lane_to_lane() -> None:
    # Four lanes of six row groups of 50 bytes, windows of 200: the first windows hold 1, 2, 3 and 4 row groups.
    plan = make_plan([5] * 24, batch=4, lanes=4, window_bytes=200)
    for lane in range(4):
        order = [group for group, _ in lane_of(plan, lane, 4)]
        window = 5 * (lane + 1)
        assert len(set(order[:window])) == lane + 1
        assert not set(order[:window]) & set(order[window:])


@pytest.mark.parametrize(("sizes", "most"), [((40, 40), 1.5), ((30, 50), 2.0)])
def test_lanes_do_not_all_come_to_new_row_groups_at_once(sizes: tuple[int, int], most: float) -> None:
    # 16 lanes, windows of four row groups: were all windows full, equal lanes would read 64 row groups at once and
    # none while they read the next three, four times the mean.
    rows = np.random.default_rng(0).integers(*sizes, 1024, endpoint=True).tolist()
    plan = make_plan(rows, batch=16, lanes=16, window_bytes=4 * 400)
    needed = np.bincount([step for step, _ in plan.reads(0, 0, 1)], minlength=plan.steps)
    stretch = 40  # steps in which each lane goes through one row group, all of them through 16
    steady = needed[4 * stretch : -stretch]  # the first windows must all be read at the start
    assert np.convolve(steady, np.ones(stretch), "valid").max() <= most * 16


def test_a_row_group_larger_than_a_window_is_a_window_of_its_own() -> None:
    order = lane_of(make_plan([5] * 4, batch=5, lanes=1, window_bytes=1), 0, 1)
    assert [len({group for group, _ in order[at : at + 5]}) for at in range(0, 20, 5)] == [1, 1, 1, 1]


def test_the_order_of_a_small_set_is_pinned() -> None:
    # Resuming a run depends on this order: a change of it needs a new data-set or checkpoint version.
    plan = make_plan([2, 3, 1], batch=3, lanes=2)
    assert plan.worker_batch(0, 0, 1) == [(1, 0), (0, 0), (2, 0)]
    assert plan.worker_batch(1, 0, 1) == [(0, 1), (1, 1), (1, 2)]


def test_smaller_sets_of_groups_lie_in_larger_ones() -> None:
    groups = [f"car{number}" for number in range(30)]
    kept = [kept_groups(groups, count, seed=3) for count in range(1, 31)]
    assert all(smaller < larger for smaller, larger in pairwise(kept))
    assert [len(groups) for groups in kept] == list(range(1, 31))
    assert kept_groups(reversed(groups), 10, seed=3) == kept[9]
    assert kept_groups(groups, 10, seed=4) != kept[9]
    assert kept_groups(groups, None, seed=3) == frozenset(groups)


def test_a_hundred_thousand_row_groups_are_planned_and_resumed_quickly() -> None:
    rows = np.full(100_000, 100, np.int64)
    table = RowGroupTable(rows=rows, bytes=rows * 80_000)
    began = time.process_time()
    plan = EpochPlan("abc", 0, 0, table, 1024, 1024, 16 * 2**20)
    plan.worker_batch(plan.steps // 2, 0, 1)
    plan.outstanding(plan.steps // 2, 0, 1)
    assert plan.samples == 10_000_000
    assert time.process_time() - began < 3.0


def large_set(rows: int) -> tuple[RowGroupTable, int]:
    """512 row groups of some 8 MiB with about `rows` samples each, and the lanes that a global batch of 256 gets."""
    counts = np.random.default_rng(rows).integers(rows - 2, rows + 3, 512)
    table = RowGroupTable(rows=counts, bytes=counts * (8 * 2**20 // (rows + 2)))
    return table, lanes_for(256, 512, int(table.bytes.sum()))


def test_256_workers_have_work_in_each_step_on_a_set_of_512_row_groups() -> None:
    table, lanes = large_set(40)
    plan = EpochPlan("abc", 1, 0, table, 256, lanes, 2**20)
    samples: list[Sample] = []
    for step in range(plan.steps):
        shares = [plan.worker_batch(step, worker, 256) for worker in range(256)]
        if step < plan.steps - 1:
            assert {len(share) for share in shares} == {1}
        assert sorted(sample for share in shares for sample in share) == sorted(plan.worker_batch(step, 0, 1))
        samples += [sample for share in shares for sample in share]
    assert sorted(samples) == every_sample(table.rows.tolist())


@pytest.mark.parametrize("rows", [5, 40])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 8, 16])
def test_more_lanes_let_no_more_row_groups_be_read_twice(rows: int, workers: int) -> None:
    table, lanes = large_set(rows)
    assert lanes == 256
    few = [EpochPlan("abc", 1, epoch, table, 256, 16, 16 * 2**20) for epoch in range(6)]
    many = [EpochPlan("abc", 1, epoch, table, 256, lanes, 2**20) for epoch in range(6)]
    read = [row_groups_read(plan, workers) for plan in many]
    assert 6 * 512 <= sum(read) <= sum(row_groups_read(plan, workers) for plan in few)
    assert max(read) <= 512 + workers - 1


@settings(max_examples=60)
@given(
    rows=st.lists(st.integers(1, 12), min_size=1, max_size=25),
    rounds=st.integers(1, 3),
    lanes=st.integers(17, 40),
    data=st.data(),
)
def test_workers_that_own_neighbouring_lanes_share_each_batch_as_evenly(
    rows: list[int], rounds: int, lanes: int, data: st.DataObject
) -> None:
    workers = data.draw(st.integers(1, lanes))
    plan = make_plan(rows, rounds * lanes, lanes)
    for step in range(plan.steps):
        shares = [plan.worker_batch(step, worker, workers) for worker in range(workers)]
        whole = plan.worker_batch(step, 0, 1)
        places = [[whole.index(sample) for sample in share] for share in shares]
        assert sorted(place for each in places for place in each) == list(range(len(whole)))
        assert all(each == sorted(each) for each in places), "each share is in global order"
        assert max(map(len, shares)) <= slots_per_worker(rounds * lanes, lanes, workers)
    left = [plan.outstanding(0, worker, workers) for worker in range(workers)]
    np.testing.assert_array_equal(np.sum(left, axis=0), rows)

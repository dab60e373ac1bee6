"""How a global batch lies on workers and replicas."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segtrain.config.batch_split import batch_split, slots_per_worker


@given(batch=st.integers(1, 40), lanes=st.integers(1, 24), data=st.data())
def test_slots_per_worker_is_the_largest_share_of_any_step(batch: int, lanes: int, data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, lanes))
    shares = [
        np.bincount(np.arange(step * batch, (step + 1) * batch) % lanes % workers, minlength=workers).max()
        for step in range(lanes)
    ]
    assert slots_per_worker(batch, lanes, workers) == max(shares)


@given(
    batch=st.integers(1, 64),
    workers=st.integers(1, 16),
    replicas=st.integers(1, 8),
    per_replica=st.none() | st.integers(1, 20),
)
def test_the_batch_split_covers_every_share_without_a_needless_slot(
    batch: int, workers: int, replicas: int, per_replica: int | None
) -> None:
    split = batch_split(batch, 16, workers, replicas, per_replica)
    assert split.slots == slots_per_worker(batch, 16, workers)
    assert split.per_replica * split.accumulation * replicas >= split.slots
    assert (split.per_replica - 1) * split.accumulation * replicas < split.slots
    assert split.accumulation == 1 if per_replica is None else split.per_replica <= per_replica


def test_batch_splits_of_known_sizes() -> None:
    assert batch_split(16, 16, 1, 4, None).per_replica == 4
    split = batch_split(32, 16, 2, 1, 6)  # 16 a worker in three passes of 6, 5.3 on average
    assert (split.slots, split.accumulation, split.per_replica) == (16, 3, 6)
    assert batch_split(16, 16, 3, 1, None).slots == 6  # lanes 0, 3, ..., 15 are six

"""How a global batch lies on workers and replicas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.config import Recipe, override
from segtrain.config.batch_split import FEWEST_LANES, batch_split, lanes_for, slots_per_worker, split_of


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


@pytest.mark.parametrize(
    ("batch", "row_groups", "lanes"),
    [
        *[(1, 512, 16), (4, 512, 16), (5, 512, 15), (12, 512, 12), (16, 4, 16), (24, 512, 24), (512, 512, 256)],
        *[(1000, 512, 250), (600, 130, 60), (64, 40, 16), (509, 512, 16), (4096, 100_000, 4096)],
    ],
)
def test_lanes_follow_from_the_global_batch_and_the_row_groups(batch: int, row_groups: int, lanes: int) -> None:
    assert lanes_for(batch, row_groups) == lanes


@given(batch=st.integers(1, 600), row_groups=st.integers(1, 700))
def test_a_world_that_divides_batch_and_lanes_gets_equal_shares(batch: int, row_groups: int) -> None:
    lanes = lanes_for(batch, row_groups)
    assert batch % lanes == 0 or lanes % batch == 0 or lanes == FEWEST_LANES
    for workers in range(1, lanes + 1):
        if batch % workers == 0 and lanes % workers == 0:
            assert slots_per_worker(batch, lanes, workers) == batch // workers


def test_a_recipe_that_leaves_lanes_out_is_split_before_its_data_set_is_known() -> None:
    recipe = override(Recipe(), ["train.global_batch_size=48", "cluster.workers=24"])
    assert split_of(recipe) == batch_split(48, 48, 24, 1, None)
    assert split_of(override(recipe, ["data.lanes=32"])) == batch_split(48, 32, 24, 1, None)

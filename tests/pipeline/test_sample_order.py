"""Lanes and windows that a recipe leaves out follow from its data set and its global batch, whatever the world is."""

import pytest

from segtrain.config import Recipe
from segtrain.dataset.manifest import Manifest, RowGroups, Shard
from segtrain.errors import UserError
from segtrain.pipeline.sample_order import WINDOW_BYTES, WINDOWS_BYTES, SampleOrder, sample_order

MIB = 2**20


def set_of(row_groups: int, row_group_bytes: int = 8 * MIB) -> Manifest:
    """What is known of a data set with these row groups, eight in a shard as `prepare` writes them."""
    eight = [8] * (row_groups // 8) + [row_groups % 8] * (row_groups % 8 > 0)
    shards = [
        Shard.model_construct(
            row_groups=RowGroups(
                offset=[0] * count, length=[row_group_bytes] * count, crc32c=[0] * count, rows=[9] * count
            )
        )
        for count in eight
    ]
    return Manifest.model_construct(shards=shards)


def recipe_of(batch: int, workers: int = 1, **data: int) -> Recipe:
    return Recipe.from_dict(
        {"data": data, "train": {"global_batch_size": batch}, "cluster": {"workers": workers, "gpus_per_worker": 1}}
    )


def test_512_row_groups_feed_256_workers() -> None:
    for batch in (256, 512, 1024):
        assert sample_order(recipe_of(batch, workers=256), set_of(512)).lanes == 256


@pytest.mark.parametrize("batch", [1, 5, 16, 24, 48, 256, 1000])
def test_no_world_changes_the_order(batch: int) -> None:
    alone = sample_order(recipe_of(batch), set_of(512))
    for workers in range(1, min(batch, alone.lanes) + 1):
        assert sample_order(recipe_of(batch, workers), set_of(512)) == alone


def test_what_a_recipe_sets_is_kept() -> None:
    assert sample_order(recipe_of(256, lanes=24), set_of(512)) == (24, WINDOW_BYTES)
    assert sample_order(recipe_of(256, lanes=640), set_of(512)) == (640, WINDOW_BYTES)
    assert sample_order(recipe_of(256, shuffle_window_bytes=4096), set_of(512)) == (256, 4096)


@pytest.mark.parametrize("batch", [1, 8, 16, 17, 64, 256, 4096])
def test_windows_are_bounded_over_all_lanes_as_one_worker_may_own_them_all(batch: int) -> None:
    lanes, window_bytes = sample_order(recipe_of(batch), set_of(20_000))
    assert window_bytes <= WINDOW_BYTES
    assert lanes * window_bytes <= WINDOWS_BYTES


@pytest.mark.parametrize("row_group_bytes", [4 * MIB, 12 * MIB, 64 * MIB])
def test_a_row_group_of_each_lane_fits_into_memory(row_group_bytes: int) -> None:
    lanes = sample_order(recipe_of(4096), set_of(20_000, row_group_bytes)).lanes
    assert lanes * row_group_bytes <= 3 * 2**30
    assert lanes == {4: 512, 12: 256, 64: 32}[row_group_bytes // MIB]


def test_the_numbers_are_written_into_the_recipe() -> None:
    recipe = recipe_of(64)
    written = sample_order(recipe, set_of(512)).written_into(recipe)
    assert (written.data.lanes, written.data.shuffle_window_bytes) == (64, 4 * MIB)
    assert sample_order(written, set_of(8)) == SampleOrder(64, 4 * MIB), "also once the set has other row groups"


def test_more_workers_than_a_set_has_lanes_are_refused_with_a_fix() -> None:
    with pytest.raises(
        UserError,
        match=r"^cluster\.workers is 20 but train\.global_batch_size 32 and the 36 row groups of .* make 16 lanes, .*"
        r"ask for at most 16 workers, or set data\.lanes$",
    ):
        sample_order(recipe_of(32, workers=20), set_of(36))
    assert sample_order(recipe_of(32, workers=20, lanes=20), set_of(36)).lanes == 20

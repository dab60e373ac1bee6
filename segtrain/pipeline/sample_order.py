"""How a run deals out its samples: as its recipe says, else as follows from its data set.

What follows does so from the data set and the global batch alone, so the order of samples knows nothing of the world.
"""

from typing import NamedTuple

from segtrain.config import Recipe
from segtrain.config.batch_split import lanes_for
from segtrain.dataset.manifest import Manifest
from segtrain.errors import UserError

WINDOW_BYTES, WINDOWS_BYTES = 16 * 2**20, 256 * 2**20
"""Largest window of a lane, and of all lanes together where their number follows from the data set. A worker may own
them all. A window is one row group at least."""


class SampleOrder(NamedTuple):
    """How an epoch is dealt out."""

    lanes: int
    window_bytes: int
    """Largest window of a lane."""

    def written_into(self, recipe: Recipe) -> Recipe:
        """The recipe with these numbers, which it keeps whatever its data set becomes."""
        return recipe.updated({"data.lanes": self.lanes, "data.shuffle_window_bytes": self.window_bytes})


def sample_order(recipe: Recipe, manifest: Manifest) -> SampleOrder:
    """The order that a recipe names; of what it leaves out, the one that follows from data set and global batch.

    It is the same for all folds of the set. Raises UserError where the run may have more workers than lanes.
    """
    data, batch, workers = recipe.data, recipe.train.global_batch_size, recipe.cluster.max_workers
    if data.lanes is not None:
        return SampleOrder(data.lanes, data.shuffle_window_bytes or WINDOW_BYTES)
    row_groups = sum(len(shard.row_groups) for shard in manifest.shards)
    lanes = lanes_for(batch, row_groups, sum(sum(shard.row_groups.length) for shard in manifest.shards))
    if workers > lanes:
        raise UserError(
            f"cluster.workers is {workers} but train.global_batch_size {batch} and the {row_groups} row groups of "
            f"{data.root} make {lanes} lanes, and a lane feeds one worker; ask for at most {lanes} workers, "
            f"or set data.lanes"
        )
    return SampleOrder(lanes, data.shuffle_window_bytes or min(WINDOW_BYTES, WINDOWS_BYTES // lanes))

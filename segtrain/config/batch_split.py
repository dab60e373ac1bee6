"""How a global batch is split over lanes, workers and replicas: one static shape for every worker and every step."""

import math
from dataclasses import dataclass

import numpy as np

from segtrain.config.recipe import Recipe

PLACED_BATCHES = 2
"""Batches on the devices beside the one that is trained on."""
FORWARDED_BATCHES = 1
"""Batches to be scored that the devices have been given beside the one whose logits the host waits for."""
FEWEST_LANES = 16
"""Lanes where a data set has few row groups. A small global batch too is drawn from about as many windows."""
LANES_BYTES = 3 * 2**30
"""Most stored bytes of one row group a lane, which one worker holds that owns all lanes. It allows 256 lanes with row
groups of up to 12 MiB; `prepare` writes 8."""


@dataclass(frozen=True)
class BatchSplit:
    """How a worker's share of the global batch lies on its replicas; the same for every worker and step."""

    per_replica: int
    """Pictures a replica holds at once."""
    accumulation: int
    """Passes over `per_replica` pictures in one step."""
    slots: int
    """Largest share of a worker; `per_replica * accumulation * replicas` is at least this."""


def lanes_for(global_batch_size: int, row_groups: int | None = None, stored_bytes: int = 0) -> int:
    """The number of lanes where a recipe does not say: from the data set and the global batch, never from the world.

    - Of up to 16 pictures the largest multiple that is at most 16.
    - Of more pictures the largest divisor for which there are two row groups a lane, within `LANES_BYTES`; 16 at least.

    A lane has a row group of its own in memory, so lanes beyond a picture each would fill memory and feed nobody. Lanes
    and global batch are multiples of each other, unless the batch has no such divisor: workers whose number divides
    both get the same number of pictures in each step. With None there are row groups for any number of lanes.
    """
    if global_batch_size <= FEWEST_LANES:
        return FEWEST_LANES // global_batch_size * global_batch_size
    most = global_batch_size
    if row_groups is not None:
        most = min(most, row_groups // 2, LANES_BYTES * row_groups // max(1, stored_bytes))
    divisors = (lanes for lanes in range(most, FEWEST_LANES, -1) if global_batch_size % lanes == 0)
    return next(divisors, FEWEST_LANES)


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


def split_of(recipe: Recipe, per_replica_batch_size: int | None = None) -> BatchSplit:
    """`batch_split` of a recipe, on the most workers that it may have; with another bound on pictures at once.

    A recipe that leaves its lanes out, and was not brought together with a data set, gets those of a large one.
    """
    cluster, train = recipe.cluster, recipe.train
    lanes = recipe.data.lanes or lanes_for(train.global_batch_size)
    at_once = per_replica_batch_size or train.per_replica_batch_size
    return batch_split(train.global_batch_size, lanes, cluster.max_workers, cluster.replicas_per_worker, at_once)

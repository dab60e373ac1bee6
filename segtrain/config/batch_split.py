"""How a global batch is split over workers and replicas: one static shape for every worker and every step."""

import math
from dataclasses import dataclass

import numpy as np

from segtrain.config.recipe import Recipe

PLACED_BATCHES = 2
"""Batches on the devices beside the one that is trained on."""


@dataclass(frozen=True)
class BatchSplit:
    """How a worker's share of the global batch lies on its replicas; the same for every worker and step."""

    per_replica: int
    """Pictures a replica holds at once."""
    accumulation: int
    """Passes over `per_replica` pictures in one step."""
    slots: int
    """Largest share of a worker; `per_replica * accumulation * replicas` is at least this."""


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
    """`batch_split` of a recipe, on the most workers that it may have; with another bound on pictures at once."""
    cluster, train = recipe.cluster, recipe.train
    at_once = per_replica_batch_size or train.per_replica_batch_size
    return batch_split(
        train.global_batch_size, recipe.data.lanes, cluster.max_workers, cluster.replicas_per_worker, at_once
    )

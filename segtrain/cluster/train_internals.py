"""The private parts of Ray Train that segtrain uses; apart from `ray_internals.py` because importing them takes long.

`tests/cluster/test_internals.py` checks each name, and says what it is used for when a new version of Ray has
changed it.
"""

from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

BASE_EXCEPTION = "_base_exc"
"""Attribute of Ray Train's wrapper around a worker's exception that holds the exception itself."""
GROUP_CLEANER = "PlacementGroupCleanerCallback"
"""Class of the callback that removes placement groups when their trainer is gone."""

__all__ = [
    "BASE_EXCEPTION",
    "GROUP_CLEANER",
    "InsufficientClusterResourcesError",
    "WorkerGroupCallback",
    "WorkerGroupStartupTimeoutError",
    "WorkerHealthCheckFailedError",
    "WorkerHealthCheckTimeoutError",
]

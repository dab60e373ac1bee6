"""Joining a Ray cluster, or starting one in this process, and what it has to offer."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.state import state

from segtrain.errors import UserError
from segtrain.preflight import Node, Offer


@contextmanager
def connection() -> Iterator[None]:
    """Ray is there inside the block.

    It is what this process has already joined; else the cluster that `RAY_ADDRESS` or `ray start` on this machine
    names; else one of its own, without a dashboard, that ends with the block. Raises UserError where RAY_ADDRESS
    names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    # Ray would start a worker for each core at once; ours have an environment of their own and cannot use them.
    with environment(RAY_prestart_worker_first_driver="0", RAY_enable_worker_prestart="0"):
        try:
            ray.init(**quiet)
        except ConnectionError:
            address = os.environ.get("RAY_ADDRESS")
            if address:
                raise UserError(
                    f"RAY_ADDRESS: no Ray cluster answers at {address}; start it or unset RAY_ADDRESS"
                ) from None
            # Left behind by a `ray start` that was killed.
            ray.init("local", **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def offer() -> Offer:
    """The nodes that are alive, and the limits of the autoscaler where there is one."""
    nodes = [
        Node(node["NodeManagerHostname"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]
    return Offer(nodes, state.get_max_resources_from_cluster_config())


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set what the user has not set, for the block."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)

"""What the Ray cluster has to offer, and what is asked of it."""

import json
import math
import os
from collections.abc import Callable
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.utils import is_autoscaler_v2

from segtrain.cluster.capacity import Node, Offer
from segtrain.cluster.connection import connection as connection
from segtrain.cluster.ray_internals import cluster_state, global_worker, ray_constants
from segtrain.config import ClusterConfig

STOP_WAIT_S = 60.0
"""With less a submitted job is warned: the README's 120 s hold the longest step and a slow upload."""


def offer() -> Offer:
    """The nodes that are there to stay, and the limits of the autoscaler where there is one."""
    going = draining()
    nodes = [
        _node(node["NodeManagerHostname"], node["Resources"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in going
    ]
    return Offer(nodes, cluster_state.get_max_resources_from_cluster_config() or _unknown_limits())


def free() -> list[Node]:
    """What is free at this moment on each node that is there to stay."""
    going, left = draining(), cluster_state.available_resources_per_node()
    return [
        _node(node["NodeManagerHostname"], left[node["NodeID"]])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] in left and node["NodeID"] not in going
    ]


def room(asked: ClusterConfig) -> int:
    """How many workers could start at this moment."""
    return sum(node.room(asked) for node in free())


def room_here(asked: ClusterConfig) -> int:
    """How many workers this machine could hold if nothing else ran there; at least the one that asks."""
    here = ray.get_runtime_context().get_node_id()
    found = (_node("", node["Resources"]) for node in ray.nodes() if node["NodeID"] == here)
    return max(1, sum(node.room(asked) for node in found))


def draining() -> set[str]:
    """Ray's names of the nodes that have been told to go, as a spot machine is two minutes before its end."""
    return set(cluster_state.get_draining_nodes())


def bundle(asked: ClusterConfig) -> dict[str, float]:
    """What one worker asks of Ray."""
    gpus = {"GPU": float(asked.gpus_per_worker)} if asked.gpus_per_worker else {}
    return {"CPU": float(asked.cpus_per_worker), **gpus}


def want(asked: ClusterConfig, workers: int) -> None:
    """Tell the autoscaler that there is work for this number of workers, whatever runs now; 0 takes it back."""
    request_resources(bundles=[bundle(asked)] * workers)


def _unknown_limits() -> dict[str, float] | None:
    """No limits where an autoscaler is at work that does not tell its own, as that of `ray up`; None where none is."""
    worker: Any = global_worker
    gcs = worker.gcs_client
    if not is_autoscaler_v2(fetch_from_server=True, gcs_client=gcs):
        status = gcs.internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS.encode(), None)
        if not status or not autoscales(status):
            return None
    return {"CPU": math.inf, "GPU": math.inf}


def autoscales(status: bytes) -> bool:
    """Whether an autoscaler of the first version, which wrote this status, can start nodes.

    Without one `ray start` runs a monitor that only watches, and calls each node's type `node_` and its id.
    """
    try:
        types = json.loads(status)["autoscaler_report"]["node_type_mapping"]
    except (ValueError, KeyError, TypeError):
        return False
    return any(kind != f"node_{node}" for node, kind in (types or {}).items())


def warn_of_hasty_stops(note: Callable[[str], None]) -> None:
    """Call `note` with a line where this is a submitted job that `ray job stop` would kill before it has saved."""
    given = float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3"))
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and given < STOP_WAIT_S:
        note(
            f"`ray job stop` leaves this job {given:g} s to save; submit it with "
            f"""--runtime-env-json '{{"env_vars": {{"RAY_JOB_STOP_WAIT_TIME_S": "120"}}}}' to lose no step"""
        )


def _node(host: str, resources: dict[str, float]) -> Node:
    return Node(host, resources.get("CPU", 0.0), resources.get("GPU", 0.0))

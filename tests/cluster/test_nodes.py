"""What is read of a cluster's state."""

import pytest
import ray

from segtrain.cluster import nodes
from segtrain.config import ClusterConfig

READ_ONLY = b'{"autoscaler_report": {"node_type_mapping": {"ffff00": "node_ffff00"}, "legacy": true}}'
AT_WORK = b'{"autoscaler_report": {"node_type_mapping": {"10.0.0.4": "head"}, "legacy": true}}'


@pytest.mark.parametrize(
    ("status", "is_one"),
    [(READ_ONLY, False), (AT_WORK, True), (b'{"autoscaler_report": null}', False), (b"half a", False)],
)
def test_an_autoscaler_that_can_start_nodes_is_told_from_one_that_watches(status: bytes, is_one: bool) -> None:
    assert nodes.autoscales(status) is is_one


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_room_of_the_machine_that_asks_is_what_it_has_when_nothing_else_runs() -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    found = [nodes.room_here(ClusterConfig(cpus_per_worker=each)) for each in (1, cpus, cpus + 1)]
    assert found == [cpus, 1, 1]
    assert nodes.room_here(ClusterConfig(gpus_per_worker=10_000)) == 1, "at least the one that asks"

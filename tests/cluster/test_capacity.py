"""Whether a run's workers fit into what the cluster can ever give."""

import math

import pytest

from segtrain.cluster.capacity import Node, Offer, check_offer, missing
from segtrain.config import ClusterConfig
from segtrain.errors import UserError

CPU_NODE = Node("a", cpus=4, gpus=0)
GPU_NODE = Node("b", cpus=8, gpus=4)


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        (ClusterConfig(workers=3, cpus_per_worker=4), True),
        (ClusterConfig(workers=4, cpus_per_worker=4), False),
        (ClusterConfig(workers=2, cpus_per_worker=6), False),
        (ClusterConfig(workers=2, gpus_per_worker=2), True),
        (ClusterConfig(workers=1, gpus_per_worker=8), False),
    ],
)
def test_each_worker_must_fit_on_one_node(asked: ClusterConfig, fits: bool) -> None:
    offer = Offer([CPU_NODE, GPU_NODE])
    if fits:
        check_offer(asked, offer)
    else:
        with pytest.raises(UserError, match="but the cluster has 2 nodes with 12 CPUs and 4 GPUs"):
            check_offer(asked, offer)


def test_gpus_where_there_are_none_are_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"1 worker with 1 CPU and 2 GPUs each.*set cluster.gpus_per_worker=0"):
        check_offer(ClusterConfig(gpus_per_worker=2), Offer([CPU_NODE]))


def test_an_autoscaler_may_still_bring_what_is_missing() -> None:
    offer = Offer([CPU_NODE], limits={"CPU": 64, "GPU": 8})
    check_offer(ClusterConfig(workers=4, gpus_per_worker=2), offer)
    with pytest.raises(UserError, match="and may grow"):
        check_offer(ClusterConfig(workers=8, gpus_per_worker=2), offer)


def test_an_autoscaler_that_does_not_tell_its_limits_may_bring_anything() -> None:
    offer = Offer([CPU_NODE], limits={"CPU": math.inf, "GPU": math.inf})
    asked = ClusterConfig(workers=64, gpus_per_worker=8, cpus_per_worker=3)
    assert offer.room(asked) is None
    check_offer(asked, offer)


def test_of_a_range_of_workers_the_fewest_must_fit() -> None:
    check_offer(ClusterConfig(workers=(3, 9), cpus_per_worker=4), Offer([CPU_NODE, GPU_NODE]))
    with pytest.raises(UserError, match="the run asks for 4 to 9 workers with 4 CPUs each"):
        check_offer(ClusterConfig(workers=(4, 9), cpus_per_worker=4), Offer([CPU_NODE, GPU_NODE]))


def test_what_is_missing_counts_whole_workers_and_names_what_is_free() -> None:
    asked = ClusterConfig(workers=3, gpus_per_worker=2)
    free = [Node("a", 8.0, 2.0), Node("b", 8.0, 1.0)]
    assert missing(asked, free) == "room for 2 workers is missing, with 16 CPUs and 3 GPUs free"
    assert "there is room for 1" in missing(ClusterConfig(gpus_per_worker=2), free)

"""What a cluster can ever give, and whether a run's workers fit into it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segtrain.config import ClusterConfig
from segtrain.errors import UserError, counted
from segtrain.storage.files import is_remote


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    host: str
    cpus: float
    gpus: float

    def room(self, cluster: ClusterConfig) -> int:
        """How many workers it can hold when nothing else runs."""
        room = self.cpus // cluster.cpus_per_worker
        if cluster.gpus_per_worker:
            room = min(room, self.gpus // cluster.gpus_per_worker)
        return int(room)


@dataclass(frozen=True)
class Offer:
    """What the cluster can ever give."""

    nodes: Sequence[Node]
    limits: Mapping[str, float] | None = None
    """Most CPUs (`CPU`) and GPUs (`GPU`) that an autoscaler may reach, infinite where it does not say; None where the
    nodes are all there will be."""

    def room(self, cluster: ClusterConfig) -> int | None:
        """How many workers it can ever hold; None where an autoscaler does not tell how far it goes."""
        if self.limits is None:
            return sum(node.room(cluster) for node in self.nodes)
        wanted = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
        most = min(self.limits.get(name, 0) / number for name, number in wanted.items() if number)
        return None if math.isinf(most) else int(most)

    def __str__(self) -> str:
        cpus, gpus = sum(node.cpus for node in self.nodes), sum(node.gpus for node in self.nodes)
        grows = "" if self.limits is None else ", and may grow"
        return f"{counted(len(self.nodes), 'node')} with {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}{grows}"


def check_offer(cluster: ClusterConfig, offer: Offer) -> None:
    """Raise UserError where the cluster can never hold the run's workers."""
    room = offer.room(cluster)
    if room is not None and room < cluster.min_workers:
        raise UserError(f"the run asks for {needs(cluster)}, but the cluster has {offer}; {_lower(cluster, offer)}")


def _lower(cluster: ClusterConfig, offer: Offer) -> str:
    if cluster.gpus_per_worker and not any(node.gpus for node in offer.nodes):
        return "set cluster.gpus_per_worker=0 to train on the CPU, or start Ray on a machine with GPUs"
    gpus = ", cluster.gpus_per_worker" if cluster.gpus_per_worker else ""
    return f"lower cluster.workers{gpus} or cluster.cpus_per_worker, or add nodes"


def needs(cluster: ClusterConfig) -> str:
    """What the run asks for, in words."""
    gpus = f" and {counted(cluster.gpus_per_worker, 'GPU')}" if cluster.gpus_per_worker else ""
    fewest = "" if cluster.min_workers == cluster.max_workers else f"{cluster.min_workers} to "
    return f"{fewest}{counted(cluster.max_workers, 'worker')} with {counted(cluster.cpus_per_worker, 'CPU')}{gpus} each"


def missing(cluster: ClusterConfig, free: Sequence[Node]) -> str:
    """What stands in the way of a run's workers, from what is free on each node."""
    room = sum(node.room(cluster) for node in free)
    cpus, gpus = sum(node.cpus for node in free), sum(node.gpus for node in free)
    what = f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}" if cluster.gpus_per_worker else counted(cpus, "CPU")
    if room >= cluster.min_workers:
        return f"there is room for {room}, and they are being started"
    return f"room for {counted(cluster.min_workers - room, 'worker')} is missing, with {what} free"


def check_shared(paths: Mapping[str, str | None], offer: Offer) -> None:
    """Raise UserError for a local path where workers may run on several machines; by the field that each is from."""
    hosts = {node.host for node in offer.nodes}
    if len(hosts) < 2 and offer.limits is None:
        return
    machines = "may grow to several machines" if len(hosts) < 2 else f"has {len(hosts)} machines"
    for field, path in paths.items():
        if path is not None and not is_remote(path):
            raise UserError(f"{field}: {path} is a local path, but the cluster {machines}; give an s3:// URL")

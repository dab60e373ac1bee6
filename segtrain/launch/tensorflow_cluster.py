"""What Ray Train does in its workers before TensorFlow starts there: the addresses of all of them, in TF_CONFIG."""

import json
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

from segtrain.process import before_tensorflow


@dataclass
class TensorFlowCluster(BackendConfig):
    """Tells the workers' TensorFlow of each other, and nothing else: Ray's own backend would force Keras 2."""

    compute_threads: int | None = None

    @property
    def backend_cls(self) -> type[Backend]:
        return _TensorFlowBackend


class _TensorFlowBackend(Backend):
    share_cuda_visible_devices = True
    """NCCL copies directly between GPUs of a machine only where a process sees both; see `cluster/own_gpus.py`."""

    def on_start(self, worker_group: Any, backend_config: TensorFlowCluster) -> None:  # type: ignore[override]
        """Write TF_CONFIG in every worker, before its training function runs."""
        addresses = worker_group.execute(_hold_port) if len(worker_group) > 1 else []
        ray.get(
            [
                worker_group.execute_single_async(rank, _prepare, addresses, rank, backend_config.compute_threads)
                for rank in range(len(worker_group))
            ]
        )


def _hold_port() -> str:
    """This worker's address with a port that stays its own until TensorFlow, seconds later, listens on it.

    The socket is bound but does not listen, and both sides allow the port to be shared, so TensorFlow can bind it
    while no other process is given it. It is held as long as the process lives.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("", 0))
    port = holder.getsockname()[1]
    holder.detach()
    os.environ["TF_GRPC_REUSE_PORT"] = "true"
    address: str = ray.util.get_node_ip_address()
    return f"{address}:{port}"


def _prepare(addresses: list[str], rank: int, compute_threads: int | None) -> None:
    before_tensorflow(compute_threads=compute_threads)
    os.environ.pop("TF_CONFIG", None)
    if addresses:
        task = {"type": "worker", "index": rank}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})

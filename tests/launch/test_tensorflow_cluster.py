"""What Ray Train makes ready in the workers of a group, with GPUs that Ray alone believes in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY

SCRIPT = """
import json, os, sys
from pathlib import Path
import ray, ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from segtrain.launch.tensorflow_cluster import TensorFlowCluster
from segtrain.launch.train_worker import _own_gpus

def work(config):
    seen = os.environ["CUDA_VISIBLE_DEVICES"]
    found = {"saw": seen, "positions": _own_gpus(), "sees": os.environ["CUDA_VISIBLE_DEVICES"]}
    Path(config["folder"], f"{ray.train.get_context().get_world_rank()}.json").write_text(json.dumps(found))

ray.init(address="local", num_cpus=2, num_gpus=4, include_dashboard=False)
DataParallelTrainer(
    work,
    train_loop_config={"folder": sys.argv[1]},
    backend_config=TensorFlowCluster(),
    scaling_config=ScalingConfig(num_workers=2, use_gpu=True, resources_per_worker={"CPU": 1, "GPU": 2}),
    run_config=RunConfig(storage_path=sys.argv[1]),
).fit()
"""


@pytest.mark.ray
def test_two_workers_of_a_machine_see_all_its_gpus_and_each_knows_its_own(tmp_path: Path) -> None:
    # Started with four of the GPUs of a machine, as a pod of Kubernetes may be.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert {worker["saw"] for worker in found} == {worker["sees"] for worker in found} == {"4,5,6,7"}
    assert sorted(tuple(worker["positions"]) for worker in found) == [(0, 1), (2, 3)]

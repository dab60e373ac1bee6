"""Several worker processes, started by Ray, compute what one process computes."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.places import REPOSITORY

pytestmark = pytest.mark.ray

SCRIPT = REPOSITORY / "tests/support/worlds.py"


def work(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """What each worker runs."""
    import ray.train

    from segtrain.runs.status import World
    from tests.support.worlds import FEW, outcome

    context = ray.train.get_context()
    world = World(context.get_world_size(), context.get_world_rank(), config["replicas_per_worker"])
    return outcome(world, FEW)


@pytest.fixture(scope="module")
def one_replica() -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(SCRIPT), "1", f"{folder}/one.npz", "few"], check=True, timeout=600)
        return dict(np.load(f"{folder}/one.npz"))


@pytest.mark.parametrize("replicas_per_worker", [pytest.param(1, marks=pytest.mark.slow), 2])  # 30 to 50 s each
def test_two_workers_compute_what_one_replica_computes(
    ray_session: str, one_replica: dict[str, np.ndarray], tmp_path: Path, replicas_per_worker: int
) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from segtrain.launch.tensorflow_cluster import TensorFlowCluster

    trainer = DataParallelTrainer(
        work,
        train_loop_config={"replicas_per_worker": replicas_per_worker},
        backend_config=TensorFlowCluster(),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(tmp_path)),
    )
    found = trainer.fit().return_value  # type: ignore[attr-defined]
    compared = 0
    for name, value in found.items():
        if name.endswith(("losses", "weights")):
            np.testing.assert_allclose(value, one_replica[name], rtol=0, atol=1e-10, err_msg=name)
            compared += 1
        elif name.endswith("gradients"):
            np.testing.assert_allclose(value, one_replica[name], rtol=0, atol=1e-5, err_msg=name)
            compared += 1
    assert compared == 2 * 4 + 3
    compiled, plain = found["float32, compiled/gradients"], one_replica["float32, synchronized/gradients"]
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=1e-5)
    assert not found["overflow/step applied"]
    assert found["overflow/scale"] == 0.5
    assert found["overflow/replicas agree"]
    assert not found["overflow/change"].any()

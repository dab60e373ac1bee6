"""A GPU computes what a CPU does, runs out of memory in words that are known, and goes on where it was left.

Each check runs on the CPU too, where two logical devices stand in for two GPUs: so the checks themselves are tried on
every machine. Run those of a GPU with `pytest -m gpu tests/training/test_gpu.py`.
"""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from segtrain.cluster.failures import device_shortage
from segtrain.config import Recipe
from segtrain.runs.status import World
from segtrain.training.strategy import configure_process
from tests.support.on_devices import missing_gpu, run_check


@pytest.fixture(scope="module", params=["CPU", pytest.param("GPU", marks=pytest.mark.gpu)])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of device to check."""
    reason = missing_gpu() if request.param == "GPU" else None
    if reason:
        pytest.skip(reason)
    return str(request.param)


def test_gradients_are_those_of_the_cpu(kind: str) -> None:
    found = run_check("gradients", kind)
    assert found["float32"] < 1e-4  # without TF32
    assert 1e-4 < found["mixed_bfloat16"] < 3e-2  # the lower bound: it does compute in half precision


def test_an_overflow_in_float16_is_skipped(kind: str) -> None:
    found = run_check("overflow", kind)
    assert (found["sound_applied"], found["sound_changed"]) == (True, True)
    assert (found["damaged_applied"], found["damaged_changed"]) == (False, False)
    assert found["scale"] == 64.0


@pytest.mark.slow  # 15 to 25 s in a process of its own
def test_a_device_out_of_memory_is_recognised_and_goes_on(kind: str) -> None:
    found = run_check("out_of_memory", kind)
    assert found["message"] is not None, "nothing ran out of memory"
    assert found["error"].startswith("tensorflow.")
    assert device_shortage(found["message"], kind == "GPU"), found["message"]
    if kind == "CPU":
        assert device_shortage(found["message"], True) is None  # the host's memory beside GPUs
    assert np.isfinite(found["loss_afterwards"])


@pytest.mark.slow  # 15 to 25 s in a process of its own
def test_two_logical_devices_compute_what_one_does(kind: str, recipe: Callable[..., Recipe]) -> None:
    """Two logical GPUs on one card sum by TensorFlow's own ring, so this says nothing about NCCL."""
    sgd = ("optimizer.kind=sgd", "optimizer.learning_rate=0.1", "train.tf32=false")
    found = run_check("two_devices", kind, recipe(*sgd))
    one, two = found["losses"]
    assert len(one) == len(two) == 8
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert found["weights"] < 1e-4


@pytest.mark.slow  # 15 to 25 s in a process of its own
def test_a_run_that_left_and_went_on_has_the_same_bits(kind: str, recipe: Callable[..., Recipe]) -> None:
    found = run_check("resumed", kind, recipe("train.deterministic=true", "model.dropout=0.2"))
    assert found["steps"] == 8
    assert 0 < found["left_at"] < 8
    assert found["same_losses"]
    assert found["arrays"] > 0
    assert found["differing"] == []


@pytest.mark.parametrize("divided", [True, False])
def test_a_card_divided_into_logical_gpus_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, divided: bool) -> None:
    """TensorFlow raises where memory may grow beside logical devices. There is no card here, so its answers are set."""
    parts = [tf.config.LogicalDeviceConfiguration(memory_limit=64)] * 2
    grown: list[str] = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(tf.config, "get_logical_device_configuration", lambda device: parts if divided else None)
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: None)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda device, enable: grown.append(device))
    configure_process(
        World(replicas_per_worker=2 if divided else 1, gpus_per_worker=1), deterministic=False, seed=0, tf32=False
    )
    assert grown == ([] if divided else ["a GPU"])

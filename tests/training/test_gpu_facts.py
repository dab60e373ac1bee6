"""The line that names a worker's GPUs; what TensorFlow says of cards stands in for cards."""

from typing import Any

import pytest
import tensorflow as tf

from segtrain.runs.status import World
from segtrain.training import gpu_facts
from segtrain.training.gpu_facts import name_gpus

CARDS = {
    "first": {"device_name": "NVIDIA A10G", "compute_capability": (8, 6)},
    "second": {"device_name": "NVIDIA H100", "compute_capability": (9, 0)},
}


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(CARDS))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", CARDS.__getitem__)
    monkeypatch.setattr(gpu_facts, "machines_driver", lambda: "550.54.15")


@pytest.mark.parametrize(
    ("own", "named", "warned"),
    [((0,), ["A10G"], False), ((1,), ["H100"], True), (None, ["A10G", "H100"], True)],
)
@pytest.mark.usefixtures("two_cards")
def test_the_workers_own_gpus_are_named_and_a_driver_that_is_too_old_for_them(
    caplog: pytest.LogCaptureFixture, own: tuple[int, ...] | None, named: list[str], warned: bool
) -> None:
    line = name_gpus(World(gpus_per_worker=len(named), gpu_positions=own))
    assert line is not None
    assert [name for name in ("A10G", "H100") if name in line] == named
    assert "NVIDIA driver 550.54.15" in line
    assert ("older than 555" in caplog.text) is warned


def test_a_worker_without_gpus_asks_tensorflow_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(tf.config, "list_physical_devices", fail)
    assert name_gpus(World()) is None

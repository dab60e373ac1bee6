"""What a step makes a GPU do, counted in the graphs that TensorFlow runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ON_ONE = ("adam", "adamw", "rmsprop", "sgd with momentum", "all on", "dropout", "dropout, batch of 4")
ON_TWO = ("adam", "no norm", "batch norm", "depth 2", "wide")
SMALL = (
    *("small", "small, synchronized", "small, batch norm", "small, group norm", "small, bfloat16", "small, float16"),
    *("small, float64", "small, rematerialized", "small, dice over the batch", "small, all on", "small, adamw"),
    *("small, rmsprop", "small, sgd", "small, augmented", "small, dropout", "small, fcn"),
)
NORMS = 18
"""Of a U-Net of depth 4, two a block."""


def _counted(replicas: int, names: tuple[str, ...], folder: Path) -> dict[str, Any]:
    out = folder / f"{replicas}.json"
    command = [sys.executable, "-m", "tests.support.step_graphs", str(replicas), str(out), *names]
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _counted(1, (*ON_ONE, *SMALL), tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _counted(2, ON_TWO, tmp_path_factory.mktemp("graphs"))


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "sgd with momentum"])
def test_a_step_of_depth_4_starts_few_kernels(on_one: dict[str, Any], name: str) -> None:
    assert 200 < on_one[name]["kernels"] <= 700


def test_amsgrad_clipping_and_an_average_of_the_weights_add_few(on_one: dict[str, Any]) -> None:
    assert on_one["adam"]["kernels"] < on_one["all on"]["kernels"] <= 900


def test_a_dropout_layer_adds_few_operations_whatever_the_batch(on_one: dict[str, Any]) -> None:
    layers = 9
    added = on_one["dropout"]["operations"] - on_one["adam"]["operations"]
    assert layers <= added <= 4 * layers
    assert on_one["dropout, batch of 4"]["operations"] == on_one["dropout"]["operations"]


@pytest.mark.parametrize("name", [*ON_ONE, *SMALL])
def test_every_operation_has_a_kernel_for_gpus(on_one: dict[str, Any], name: str) -> None:
    assert on_one[name]["without GPU kernel"] == []


@pytest.mark.parametrize("name", [*ON_ONE, *SMALL])
def test_nothing_goes_back_to_the_host_but_whether_half_precision_overflowed(on_one: dict[str, Any], name: str) -> None:
    expected = ["Switch"] if name == "small, float16" else []
    assert on_one[name]["back to the host"] == expected


@pytest.mark.parametrize("name", ON_TWO)
def test_two_replicas_exchange_what_has_to_be_summed_and_little_else(on_two: dict[str, Any], name: str) -> None:
    norms = {"adam": NORMS, "wide": NORMS, "depth 2": 10, "no norm": 0, "batch norm": 0}[name]
    found = on_two[name]
    packs = found["packs that wait for the first level"]
    assert found["collectives"] == 2 * norms + len(packs)
    assert found["sends"] <= 8


def test_sums_of_gradients_start_before_the_backward_pass_ends(on_two: dict[str, Any]) -> None:
    packs = on_two["wide"]["packs that wait for the first level"]
    assert 2 <= len(packs) <= 4
    assert packs.count(False) >= 1
    assert packs.count(True) >= 1
    assert on_two["adam"]["packs that wait for the first level"] == [True]  # all of a small network

"""N replicas compute what one computes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.places import REPOSITORY

SCRIPT = REPOSITORY / "tests/support/worlds.py"
Found = dict[str, np.ndarray]


def run_worlds(folder: Path, *worlds: tuple[int, str]) -> dict[int, Found]:
    """What worlds of so many replicas found, each in a process of its own, all at a time."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    processes = {
        replicas: subprocess.Popen(
            [sys.executable, str(SCRIPT), str(replicas), str(folder / f"{replicas}.npz"), extent],
            env=environment,
        )
        for replicas, extent in worlds
    }
    for replicas, process in processes.items():
        assert process.wait(timeout=600) == 0, f"the world of {replicas} replicas failed"
    return {replicas: dict(np.load(folder / f"{replicas}.npz")) for replicas in processes}


# By default the four replicas of tests/training/test_workers.py do: two workers of two. Alone they take a minute more.
FOUR = pytest.param(4, marks=pytest.mark.slow)


class Worlds:
    """What 1 and 2 replicas of one worker found, and, once it is asked for, what 4 did on a few settings."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found = run_worlds(folder, (1, "most"), (2, "most"))

    def __getitem__(self, replicas: int) -> Found:
        if replicas not in self._found:
            self._found |= run_worlds(self._folder, (replicas, "few"))
        return self._found[replicas]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("worlds"))


def assert_equal_to_one_replica(found: Found, one: Found, count: int) -> None:
    names = [name for name in found if name.endswith(("losses", "weights"))]
    assert len(names) == count
    for name in names:
        np.testing.assert_allclose(found[name], one[name], rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(("replicas", "count"), [(2, 12), pytest.param(4, 8, marks=pytest.mark.slow)])
def test_in_float64_losses_and_weights_of_20_steps_do_not_depend_on_replicas(
    worlds: Worlds, replicas: int, count: int
) -> None:
    assert_equal_to_one_replica(worlds[replicas], worlds[1], count)


@pytest.mark.slow  # four to six minutes on two cores
def test_on_every_setting_two_and_four_replicas_equal_one(tmp_path: Path) -> None:
    found = run_worlds(tmp_path, (1, "all"), (2, "all"), (4, "all"))
    assert_equal_to_one_replica(found[2], found[1], 20)
    assert_equal_to_one_replica(found[4], found[1], 20)


@pytest.mark.parametrize("replicas", [1, 2, FOUR])
def test_accumulation_changes_nothing_in_float64(worlds: Worlds, replicas: int) -> None:
    found = worlds[replicas]
    for name in found:
        if "accumulation 1" not in name and "accumulation" in name:
            whole = re.sub(r"accumulation \d", "accumulation 1", name)
            np.testing.assert_allclose(found[name], found[whole], rtol=0, atol=1e-10, err_msg=name)


def test_losses_fall_and_settings_differ(worlds: Worlds) -> None:
    losses = [value for name, value in worlds[1].items() if name.endswith("accumulation 1/losses")]
    assert all(series[-1] < series[0] for series in losses)
    assert len({tuple(series) for series in losses}) == len(losses)


@pytest.mark.parametrize("replicas", [2, FOUR])
@pytest.mark.parametrize("norm", ["no norm", "synchronized"])
def test_in_float32_first_gradients_agree_to_1e_5(worlds: Worlds, replicas: int, norm: str) -> None:
    name = f"float32, {norm}/gradients"
    assert np.abs(worlds[1][name]).max() > 0.01
    np.testing.assert_allclose(worlds[replicas][name], worlds[1][name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("replicas", [1, 2])
def test_rematerialization_changes_no_gradient(worlds: Worlds, replicas: int) -> None:
    found = worlds[replicas]
    kept, again = found["float32, synchronized/gradients"], found["float32, rematerialized/gradients"]
    np.testing.assert_allclose(again, kept, rtol=0, atol=1e-5)


@pytest.mark.parametrize("replicas", [1, 2])
def test_xla_changes_no_gradient(worlds: Worlds, replicas: int) -> None:
    found = worlds[replicas]
    plain, compiled = found["float32, synchronized/gradients"], found["float32, compiled/gradients"]
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("replicas", [1, 2, FOUR])
def test_an_infinity_on_one_replica_skips_the_step_on_all_and_halves_the_scale(worlds: Worlds, replicas: int) -> None:
    found = worlds[replicas]
    assert found["overflow/sound step applied"]
    assert not found["overflow/step applied"]
    assert np.array_equal(found["overflow/change"], np.zeros_like(found["overflow/change"]))
    assert found["overflow/scale"] == 0.5
    assert found["overflow/replicas agree"]

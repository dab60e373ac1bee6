"""The programs for a machine with a GPU, which has neither Ray nor pyarrow, tried on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segtrain.config import Recipe, override
from tests.support.places import REPOSITORY

WITHOUT = """
import importlib.abc, runpy, sys

MISSING = ("ray", "pyarrow", "s3fs", "fsspec", "botocore", "PIL", "optuna", "kaggle", "plotly")

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"{name} is not on that machine", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = ["gpu", *sys.argv[1:]]
runpy.run_module("tests.bench.gpu", run_name="__main__")
"""
SMALL = ("--filters", "4", "--depth", "2")


def run(out: Path, *arguments: str) -> list[dict[str, Any]]:
    """The results that it writes."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments, "--out", str(out)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == ("1 failed" if done.returncode else "all right"), done.stdout
    results: list[dict[str, Any]] = json.loads((out / f"gpu-{arguments[0]}.json").read_text())["results"]
    return results


@pytest.mark.slow
def test_smoke_and_equal_run_without_ray_and_pyarrow(tmp_path: Path) -> None:
    assert len(run(tmp_path, "smoke")) == 3
    found = run(tmp_path, "equal", "--size", "32x48x2", *SMALL)
    names = ["float32 without TF32", "float32 with TF32", "mixed_bfloat16", "overflow", "deterministic"]
    assert [result["name"] for result in found] == names
    assert all(result["ok"] for result in found)


@pytest.mark.slow
def test_a_cell_that_fails_leaves_its_words_and_the_others_are_measured(tmp_path: Path) -> None:
    axes = ("--layout", "on", "--norms", "none", "--xla", "off", "--precisions", "nonsense,float32")
    bad, good = run(tmp_path, "step", "--sizes", "32x48x2", *SMALL, "--steps", "2", *axes)
    assert "train.precision" in str(bad["words"])
    for key in ("ms_synced", "ms_dispatch", "pictures_per_s", "peak_bytes", "predicted_bytes"):
        assert float(str(good[key])) >= 0


@pytest.mark.slow
def test_parts_of_a_step_and_sums_are_timed_without_ray_and_pyarrow(tmp_path: Path) -> None:
    few = ("--steps", "2")
    (found,) = run(tmp_path, "split", "--sizes", "32x48x2", *SMALL, *few, "--norms", "synchronized")
    assert list(found["parts"]) == ["forward", "gradients", "sums", "update", "step"]
    assert all(times["ms_synced"] >= times["ms_dispatch"] > 0 for times in found["parts"].values())
    sums = run(tmp_path, "collective", "--mib", "0.01,0.1", "--tensors", "1,4", *few)
    assert [(one["mib"], one["tensors"]) for one in sums] == [(0.01, 1), (0.01, 4), (0.1, 1), (0.1, 4)]
    assert all(one["ms"] > 0 for one in sums)


@pytest.mark.slow
def test_the_whole_loop_is_timed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.gpu", "loop", "--sizes", "32x48x4", *SMALL, "--pictures", "20"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, "--out", str(tmp_path)], cwd=REPOSITORY, env=environment, check=True, timeout=900)
    (found,) = json.loads((tmp_path / "gpu-loop.json").read_text())["results"]
    assert found["images_per_s"] > 0
    assert 0 < found["first_step_s"] < found["seconds"]
    assert found["gpu_utilization_percent"] is None  # there is no GPU in use


def test_the_network_in_pytorch_has_segtrains_number_of_parameters() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed (pip install -e '.[bench]')")
    from tests.bench.torch_unet import checked_network

    for norm in ("none", "batch"):
        recipe = override(Recipe(), ["model.filters=4", "model.depth=3", f"model.norm={norm}"])
        network, count = checked_network(recipe)
        assert count == sum(one.numel() for one in network.parameters()) > 0

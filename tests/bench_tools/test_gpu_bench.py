"""The programs for a machine with a GPU, which has neither Ray nor pyarrow, tried on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def run(out: Path, *arguments: str) -> list[dict[str, object]]:
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
    results: list[dict[str, object]] = json.loads((out / f"gpu-{arguments[0]}.json").read_text())["results"]
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

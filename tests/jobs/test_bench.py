"""`jobs/bench.py` through its command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import JOBS


def bench(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOBS / "bench.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_steps_have_to_be_taken(tiny_recipe: Path, tmp_path: Path) -> None:
    done = bench(str(tiny_recipe), "--steps", "0", folder=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: --steps: 0; it has to be 1 or more\n")


@pytest.mark.ray
def test_a_recipe_is_measured_and_leaves_nothing_behind(
    data_root: str, tiny_recipe: Path, tmp_path: Path, ray_session: str
) -> None:
    fields = [f"data.root={data_root}", f"run.storage={tmp_path}"]
    done = bench(str(tiny_recipe), *fields, "--steps", "3", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    found = json.loads(last)
    assert found["device"] == "CPU"
    assert min(value for name, value in found.items() if name.endswith(("_ms", "_s", "_bytes"))) > 0
    assert "pictures/s" in done.stdout
    assert not list(tmp_path.iterdir())

"""What import-linter cannot see: that its contracts name every module, and what a fresh interpreter really imports."""

import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY

NOT_LIGHT = {
    "cluster": ("connection", "fleet", "nodes", "ray_internals", "train_internals", "spread_out"),
    "inference": ("apply", "export", "load_networks", "predict_rows", "predictor"),
    "launch": (
        "bench_run",
        "supervisor",
        "tensorflow_cluster",
        "train_folds",
        "train_run",
        "train_worker",
        "worker_group",
    ),
    "models": ("",),
    "pipeline": ("augment", "batches", "decode", "worker_data"),
    "prediction": ("predict_masks", "predict_worker"),
    "scoring": ("evaluate_run", "score_worker"),
    "storage": ("s3_faults", "s3_files"),
    "training": (
        "best",
        "collective_keys",
        "evaluation",
        "gpu_facts",
        "gradient_sums",
        "initial_weights",
        "loop",
        "losses",
        "metrics_log",
        "optimizers",
        "run",
        "speed",
        "state",
        "step",
        "strategy",
        "update",
    ),
    "tune": ("callback", "placement_groups", "search", "stopping", "sweep", "trial"),
}
"""Modules that load TensorFlow, Ray or clients of S3; all others must not."""
HEAVY = ("tensorflow", "keras", "ray", "s3fs", "botocore")


def _layers() -> list[list[str]]:
    """Names of each layer, highest first, without the marks of names still to come."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    lines = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    return [[name.strip(" \n()") for name in line.replace("|", ":").split(":")] for line in lines]


def _modules() -> list[str]:
    """Every module of segtrain, packages among them."""
    files = sorted((REPOSITORY / "segtrain").rglob("*.py"))
    names = [".".join(file.relative_to(REPOSITORY).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def _within(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def test_every_module_has_its_layer() -> None:
    named = [name for layer in _layers() for name in layer]
    assert [module for module in _modules() if module != "segtrain" and not _within(module, named)] == []


def test_importing_the_light_modules_loads_nothing_heavy() -> None:
    not_light = [
        f"segtrain.{package}.{name}".removesuffix(".") for package, names in NOT_LIGHT.items() for name in names
    ]
    light = [module for module in _modules() if not _within(module, not_light)]
    program = "import importlib, sys\n" + "\n".join(
        f"importlib.import_module({module!r})\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        f"assert not heavy, ({module!r}, heavy)"
        for module in light
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]


@pytest.mark.parametrize("job", sorted((REPOSITORY / "jobs").glob("*.py")), ids=lambda job: str(job.name))
def test_the_help_of_a_job_loads_nothing_heavy(job: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{job.name!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(job)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code in (0, None), end.code\n"
        f"heavy = [name for name in {(*HEAVY, 'pyarrow', 'numpy')!r} if name in sys.modules]\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-1000:]
    assert "usage:" in done.stdout


def test_the_lock_pins_and_hashes_everything_and_names_no_index() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    assert "://" not in lock
    entries = lock.replace("\\\n", " ").splitlines()
    packages = [line for line in entries if line and not line.startswith((" ", "#"))]
    assert len(packages) > 50
    assert [line for line in packages if "==" not in line or "--hash=sha256:" not in line] == []

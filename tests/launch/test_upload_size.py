"""What a submitted job would send to the cluster."""

from pathlib import Path

import pytest

from segtrain.launch.upload_size import describe, measure
from tests.support.places import REPOSITORY


def test_the_repository_sends_what_a_job_needs_and_little_else() -> None:
    sizes = measure(REPOSITORY)
    sent = set(sizes)
    assert {"jobs/train.py", "jobs/recipes/carvana.yaml", "segtrain/launch/train_run.py", "pyproject.toml"} <= sent
    assert {file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / "segtrain").rglob("*.py")} <= sent
    unneeded = (".git/", ".venv/", "tests/", "docs/", "infra/", "demo/", "runs/")
    assert [path for path in sent if path.startswith(unneeded) or "__pycache__" in path] == []
    assert sum(sizes.values()) < 2 * 2**20


def test_the_files_are_those_that_ray_packs(tmp_path: Path) -> None:
    from zipfile import ZipFile

    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(str(REPOSITORY), package, include_gitignore=True, excludes=excludes)
    sent = measure(REPOSITORY)
    with ZipFile(package) as packed:
        names = {name for name in packed.namelist() if not name.endswith("/")}  # Ray packs empty folders too
    assert sent.keys() == names
    assert sum(sent.values()) < package.stat().st_size < sum(sent.values()) * 1.2  # it does not compress


def test_a_large_upload_is_told_with_its_largest_files_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print()")
    assert describe(tmp_path) == ["upload    0.0 MiB in 1 file"]

    _sparse(tmp_path / "data" / "train.parquet", 30 * 2**20)
    size, *largest, fix = describe(tmp_path)
    assert size == "upload    30.0 MiB in 2 files"
    assert [line.split() for line in largest] == [["30.0", "MiB", "data/train.parquet"], ["0.0", "MiB", "train.py"]]
    assert fix.strip() == "30.0 MiB of it is data/; add what a job does not need to .rayignore"

    _sparse(tmp_path / "old" / "weights.h5", 90 * 2**20)
    assert "90.0 MiB of it is old/, and Ray refuses more than 100.0 MiB" in describe(tmp_path)[-1]

    (tmp_path / ".rayignore").write_text("/old\n")
    (tmp_path / ".gitignore").write_text("data/\n")
    assert measure(tmp_path).keys() == {"train.py", ".rayignore", ".gitignore"}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        measure(tmp_path / "nowhere")


def _sparse(path: Path, size: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)

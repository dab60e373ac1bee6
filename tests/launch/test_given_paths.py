"""Paths of a recipe become absolute, and local ones are refused where workers run on several machines."""

from pathlib import Path

import pytest

from segtrain.cluster.capacity import Node, Offer
from segtrain.config import Recipe, override
from segtrain.errors import UserError
from segtrain.launch.preflight import absolute, check_cluster

CPU_NODE = Node("a", cpus=4, gpus=0)
GPU_NODE = Node("b", cpus=8, gpus=4)


def test_local_paths_become_absolute_and_urls_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = absolute(override(Recipe(), ["data.root=set", "train.init_from=s3://b/run"]))
    assert recipe.data.root == str(tmp_path / "set")
    assert recipe.run.folder == str(tmp_path / "runs/run")
    assert recipe.train.init_from == "s3://b/run"


def test_a_job_may_not_keep_its_run_in_the_uploaded_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    uploaded.mkdir(parents=True)
    monkeypatch.chdir(uploaded)
    with pytest.raises(UserError, match=r"run.storage: 'runs' would be deleted"):
        absolute(Recipe())
    absolute(override(Recipe(), ["run.storage=s3://b/runs"]))


@pytest.mark.parametrize("field", ["data.root", "run.storage", "train.init_from"])
def test_a_local_path_is_refused_on_several_machines(field: str) -> None:
    remote = ["data.root=s3://b/set", "run.storage=s3://b/runs", "train.init_from=s3://b/other"]
    recipe = override(Recipe(), [*remote, f"{field}=/local"])
    check_cluster(recipe, Offer([CPU_NODE, CPU_NODE]))
    with pytest.raises(UserError, match=f"{field}: /local is a local path, but the cluster has 2 machines"):
        check_cluster(recipe, Offer([CPU_NODE, GPU_NODE]))

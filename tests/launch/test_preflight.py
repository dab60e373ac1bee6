"""What a job reads of its data set, counted where an S3 server is asked for it."""

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from segtrain.cluster.capacity import Node, Offer
from segtrain.config import Recipe, override
from segtrain.dataset.manifest import Manifest
from segtrain.errors import UserError
from segtrain.launch import train_folds, train_run
from segtrain.launch.preflight import absolute, check_cluster, prepared
from segtrain.prepare.prepare_set import prepare
from segtrain.runs.status import Driver, RunSummary, World
from tests.support.fault_proxy import FaultProxy
from tests.support.seaweed import S3Server
from tests.support.small_sources import draw

ONCE = {"newest manifest": 1, "index": 1}


@pytest.fixture
def add_version(tmp_path: Path, s3_root: str) -> Callable[[int], Manifest]:
    """Makes a data set of five folds in the bucket, or its next version."""

    def add(shade: int) -> Manifest:
        source = override(draw(tmp_path / "source", shade), ["prepare.folds=5"])
        return prepare(source, s3_root, parallel=False)

    return add


@pytest.fixture
def recipe(tmp_path: Path, s3_root: str, fault_proxy: FaultProxy) -> Callable[..., Recipe]:
    """A small run on the data set in the bucket, through the proxy."""
    data = [f"data.root={s3_root}", "data.height=16", "data.width=24", "data.lanes=4", "data.cache=off"]
    network = ["model.filters=4", "model.depth=1", "model.convolutions=1"]
    train = ["train.global_batch_size=4", "train.epochs=1", f"run.storage={tmp_path / 'runs'}"]
    through = f"storage.endpoint_url={fault_proxy.endpoint}"
    return lambda *changes: override(Recipe(), [*data, *network, *train, through, *changes])


def fetched(proxy: FaultProxy) -> Counter[str]:
    """Kind of file -> times that it was fetched."""
    paths = [request.path.partition("?")[0] for request in proxy.requests if request.method == "GET"]
    kinds = {"/manifest.json": "newest manifest", "/manifest-": "older manifest", "/index-": "index"}
    return Counter(kind for path in paths for part, kind in kinds.items() if part in path)


def test_a_run_reads_manifest_and_index_once(
    recipe: Callable[..., Recipe], add_version: Callable[[int], Manifest], fault_proxy: FaultProxy
) -> None:
    add_version(0)
    fault_proxy.clear()
    prepared(recipe())
    assert fetched(fault_proxy) == ONCE


def test_an_older_version_is_one_file_more(
    recipe: Callable[..., Recipe], add_version: Callable[[int], Manifest], fault_proxy: FaultProxy
) -> None:
    older = add_version(0)
    add_version(1)
    fault_proxy.clear()
    prepared(recipe(f"data.version={older.fingerprint}"))
    assert fetched(fault_proxy) == {**ONCE, "older manifest": 1}


def test_five_folds_are_planned_with_what_was_read_once(
    recipe: Callable[..., Recipe], add_version: Callable[[int], Manifest], fault_proxy: FaultProxy
) -> None:
    add_version(0)
    fault_proxy.clear()
    _, runs = train_folds._plan(recipe("folds=all"), extend=False)
    assert [run.fold for run in runs] == [0, 1, 2, 3, 4]
    assert fetched(fault_proxy) == ONCE


def train_with(keys: dict[str, str], recipe: Recipe, world: World, driver: Driver) -> RunSummary:
    """Train for real in a worker, whose Ray may be older than the test's keys."""
    os.environ.update(keys)
    return train_run.train_with_tensorflow(recipe, world, driver)


@pytest.mark.ray
@pytest.mark.slow  # two minutes: five runs
@pytest.mark.usefixtures("ray_session")
def test_a_job_of_five_folds_reads_once_in_the_driver_and_once_in_each_worker(
    recipe: Callable[..., Recipe], add_version: Callable[[int], Manifest], fault_proxy: FaultProxy, s3_server: S3Server
) -> None:
    add_version(0)
    fault_proxy.clear()
    train_folds.train_folds(recipe("folds=all"), partial(train_with, s3_server.environment()))
    assert fetched(fault_proxy) == {kind: times * (1 + 5) for kind, times in ONCE.items()}


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

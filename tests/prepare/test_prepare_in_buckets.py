"""From bucket to bucket, over Ray, and killed in the middle: the data set is the one that local files give."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from segtrain.config import Recipe, SyntheticSource, override
from segtrain.dataset.manifest import Manifest, read_manifest
from segtrain.dataset.verify import verify
from segtrain.prepare.prepare_set import prepare
from segtrain.prepare.sources.synthetic import draw_cars
from segtrain.storage.files import Storage, join
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.places import JOBS
from tests.support.seaweed import S3Server

JOB = JOBS / "prepare.py"
# Every picture is a shard of its own.
SETTINGS = ["source.kind=carvana", "prepare.folds=2", "prepare.shard_bytes=1024"]


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures in Kaggle's layout."""
    folder = tmp_path_factory.mktemp("cars")
    draw_cars(SyntheticSource(cars=10, views=3, height=48, width=72), folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(cars: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    """The data set of these pictures in a local folder."""
    root = str(tmp_path_factory.mktemp("undisturbed") / "set")
    return root, prepare(override(Recipe(), [*SETTINGS, f"source.path={cars}"]), root, parallel=False)


def assert_same(root: str, manifest: Manifest, undisturbed: tuple[str, Manifest]) -> None:
    """Byte for byte the same files, but for the time in the manifest."""
    other_root, other = undisturbed
    storage = Storage()
    assert manifest == other.model_copy(update={"created": manifest.created}) == read_manifest(storage, root)
    for path in (manifest.index.path, *(shard.path for shard in manifest.shards)):
        assert storage.read_bytes(join(root, path)) == storage.read_bytes(join(other_root, path))
    assert storage.list(root) == storage.list(other_root)


def wait_for_shards(proxy: FaultProxy, process: subprocess.Popen[bytes], count: int) -> None:
    """Return when the job has put so many shards into the bucket, and the facts of most of them."""
    deadline = time.monotonic() + 60.0
    while sum(request.method == "PUT" and "fold%3D" in request.path for request in proxy.requests) < count:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_job_killed_while_it_writes_to_a_bucket_goes_on_where_it_was(
    cars: Path,
    undisturbed: tuple[str, Manifest],
    s3_root: str,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = [*SETTINGS, f"source.path={cars}"]
    with FaultProxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.inject(Fault("delay", method="PUT", match="fold%3D", times=None, delay_s=0.1))
        command = [sys.executable, str(JOB), "carvana", s3_root, *settings]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_shards(proxy, process, count=9)
        finally:
            process.kill()
            process.wait()
        storage = Storage()
        (unfinished,) = (name for name in storage.list(s3_root) if name.startswith("_prepare-"))
        facts = [name for name in storage.list(join(s3_root, unfinished)) if name.endswith(".parquet.json")]
        assert 5 <= len(facts) < 30
        proxy.clear()
        manifest = prepare(override(Recipe(), settings), s3_root, parallel=False)
        put = [request.path for request in proxy.requests if request.method == "PUT" and "fold%3D" in request.path]
        assert_same(s3_root, manifest, undisturbed)
    assert len(put) == 30 - len(facts)
    assert not [path for path in put for name in facts if name.removesuffix(".json") in path]


@pytest.fixture
def raw(cars: Path, s3_root: str) -> str:
    """The pictures in a bucket."""
    storage = Storage()
    for path in cars.rglob("*.*"):
        storage.write_file(f"{s3_root}/raw/{path.relative_to(cars)}", path)
    return f"{s3_root}/raw"


def test_a_bucket_works_like_a_folder(raw: str, s3_root: str, undisturbed: tuple[str, Manifest]) -> None:
    root = f"{s3_root}/set"
    manifest = prepare(override(Recipe(), [*SETTINGS, f"source.path={raw}"]), root, parallel=False)
    assert_same(root, manifest, undisturbed)


@pytest.mark.ray
@pytest.mark.slow  # 20 to 40 s: Ray starts workers that have the keys, and each imports pyarrow and botocore
def test_ray_tasks_work_from_bucket_to_bucket(
    raw: str,
    undisturbed: tuple[str, Manifest],
    s3_root: str,
    s3_server: S3Server,
    ray_session: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    remote = ray.remote

    def with_keys(function: Any) -> Any:
        # The session's workers are older than the keys; on a cluster each node has its own.
        return remote(function).options(runtime_env={"env_vars": s3_server.environment()})

    monkeypatch.setattr(ray, "remote", with_keys)
    monkeypatch.setattr("segtrain.cluster.fan_out.RAY_FROM_PICTURES", 1)
    root = f"{s3_root}/set"
    manifest = prepare(override(Recipe(), [*SETTINGS, f"source.path={raw}"]), root)
    assert_same(root, manifest, undisturbed)

    storage = Storage()
    path = manifest.shards[3].path
    storage.write_bytes(join(root, path), storage.read_bytes(join(root, path))[:-1])
    problems = verify(storage, root, manifest, every_s=1e9)
    assert {problem.file for problem in problems} == {path}

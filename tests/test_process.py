"""What a process finds around it: folders, and the settings of Keras."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from segtrain import cli, process
from segtrain.process import before_tensorflow, environment, share_of_cores, usable_cores
from tests.support.places import REPOSITORY

NO_HOME = "/dev/null"
"""Where nothing can be made, by root neither."""
KERAS = """
from segtrain.process import before_tensorflow
before_tensorflow()
import keras
print(keras.config.backend(), keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon())
"""


def run(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("place", [before_tensorflow, lambda: cli.main(lambda: None)], ids=["a worker", "a job"])
def test_keras_runs_on_tensorflow_and_reads_no_settings_of_the_users(
    place: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"KERAS_BACKEND": "jax", "KERAS_HOME": "/x", "KERAS_NNX_ENABLED": "1"}.items():
        monkeypatch.setenv(name, value)
    place()
    assert os.environ["KERAS_BACKEND"] == "tensorflow"
    assert "KERAS_NNX_ENABLED" not in os.environ
    assert not Path(os.environ["KERAS_HOME"]).exists()
    with pytest.raises(NotADirectoryError):
        Path(os.environ["KERAS_HOME"]).mkdir(parents=True)


@pytest.mark.parametrize(
    ("name", "ours", "the_users"),
    [("CUDA_CACHE_MAXSIZE", "4294967296", "1000000"), ("TF_GPU_THREAD_MODE", "gpu_private", "global")],
)
def test_settings_for_gpus_are_made_unless_the_user_has_made_them(
    name: str, ours: str, the_users: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("CUDA_CACHE_MAXSIZE", "TF_GPU_THREAD_MODE"):
        monkeypatch.setenv(variable, "")  # which is put back afterwards
        monkeypatch.delenv(variable)
    before_tensorflow()
    assert os.environ[name] == ours
    monkeypatch.setenv(name, the_users)
    before_tensorflow()
    assert os.environ[name] == the_users


@pytest.mark.slow
@pytest.mark.parametrize("home", ["written", NO_HOME])
def test_keras_json_changes_nothing(home: str, tmp_path: Path) -> None:
    settings = {"floatx": "float16", "epsilon": 0.1, "backend": "jax", "image_data_format": "channels_first"}
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras/keras.json").write_text(json.dumps(settings))
    folder = str(tmp_path) if home == "written" else home
    said = run(KERAS, HOME=folder, KERAS_HOME=f"{folder}/.keras", KERAS_BACKEND="jax")
    assert said.split() == ["tensorflow", "channels_last", "float32", "1e-07"]


def test_no_folder_for_temporary_files_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    assert cli.main(lambda: pytest.fail("the job ran")) == 1
    assert capsys.readouterr().err.startswith(
        "error: no temporary file can be written in TMPDIR, /tmp or /var/tmp; set "
    )


def test_a_full_folder_for_temporary_files_is_one_sentence_before_the_job_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "LEAST_TEMPORARY_BYTES", 2**62)
    assert cli.main(lambda: pytest.fail("the job ran")) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tempfile.gettempdir()}, the folder for temporary files, has ")
    assert said.endswith("make room or set TMPDIR to another folder\n")


def test_a_folder_for_temporary_files_that_is_not_there_gives_way_to_another(tmp_path: Path) -> None:
    code = "from segtrain import cli; import tempfile; print(cli.main(lambda: print(tempfile.gettempdir())))"
    assert run(code, TMPDIR=str(tmp_path / "missing"), HOME=NO_HOME).split() == ["/tmp", "0"]


@pytest.mark.parametrize(("replace", "inside"), [(False, "by the user"), (True, "ours")])
def test_the_environment_is_as_before_after_the_block(
    replace: bool, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGTRAIN_SET", "by the user")
    with environment(SEGTRAIN_SET="ours", SEGTRAIN_NEW="ours", replace=replace):
        assert os.environ["SEGTRAIN_SET"] == inside
        assert os.environ["SEGTRAIN_NEW"] == "ours"
    assert os.environ["SEGTRAIN_SET"] == "by the user"
    assert "SEGTRAIN_NEW" not in os.environ


def group(root: Path, place: str, **files: str) -> None:
    folder = root / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")).write_text(f"{text}\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mounted control groups of a machine with 64 cores, on all of which this process may run."""
    monkeypatch.setattr(process, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(process, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    return tmp_path / "cgroup"


def is_in(groups: Path, *lines: str) -> None:
    (groups.parent / "own").write_text("".join(f"{line}\n" for line in lines))


def test_without_a_quota_the_cores_that_a_process_may_run_on_count(groups: Path) -> None:
    assert usable_cores() == 64, "no control groups"
    group(groups, "", cpu_max="max 100000")
    is_in(groups, "0::/")
    assert usable_cores() == 64


@pytest.mark.parametrize(("quota", "cores"), [("600000", 6), ("150000", 2), ("10000", 1), ("9900000", 64)])
def test_a_quota_of_a_control_group_counts_in_both_versions(groups: Path, quota: str, cores: int) -> None:
    group(groups, "pods/one", cpu_max=f"{quota} 100000")
    is_in(groups, "0::/pods/one")
    assert usable_cores() == cores
    group(groups, "pods/one", cpu_max="max 100000")
    group(groups, "cpu,cpuacct/docker/7", cpu_cfs_quota_us=quota, cpu_cfs_period_us="100000")
    is_in(groups, "4:memory:/docker/7", "3:cpu,cpuacct:/docker/7", "0::/pods/one")
    assert usable_cores() == cores


def test_the_smallest_quota_around_a_process_holds(groups: Path) -> None:
    group(groups, "pods", cpu_max="300000 100000")
    group(groups, "pods/one", cpu_max="800000 100000")
    group(groups, "pods/two", cpu_max="100000 100000")
    is_in(groups, "0::/pods/one")
    assert usable_cores() == 3


def test_in_a_container_the_mounted_root_is_its_own_group(groups: Path) -> None:
    group(groups, "cpu", cpu_cfs_quota_us="400000", cpu_cfs_period_us="100000")
    is_in(groups, "3:cpu,cpuacct:/docker/not-mounted-here")
    assert usable_cores() == 4
    group(groups, "cpu", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    assert usable_cores() == 64


@pytest.mark.parametrize(
    ("workers", "cpus_per_worker", "cores"),
    [(1, 1, 64), (8, 1, 8), (3, 1, 21), (100, 1, 1), (1, 6, 6), (8, 6, 6), (1, 99, 64)],
)
@pytest.mark.usefixtures("groups")
def test_workers_on_a_machine_share_its_cores_or_take_what_they_asked_for(
    workers: int, cpus_per_worker: int, cores: int
) -> None:
    assert share_of_cores(workers, cpus_per_worker) == cores


def test_tensorflow_is_told_of_a_quota_that_it_does_not_see(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    before_tensorflow()
    assert "TF_NUM_INTRAOP_THREADS" not in os.environ
    group(groups, "", cpu_max="400000 100000")
    is_in(groups, "0::/")
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    before_tensorflow()
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "3", "the user's own"
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
    before_tensorflow()
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "4"
    before_tensorflow(compute_threads=2)
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "2"

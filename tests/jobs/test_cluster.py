"""The jobs on a cluster that `ray start` made: joined from its machine, and through `ray job submit`."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from segtrain.config import StorageConfig
from segtrain.runs import goodput
from segtrain.storage.files import Storage
from tests.support.places import REPOSITORY
from tests.support.waiting import wait_until

RAY = Path(sysconfig.get_path("scripts")) / "ray"

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Head:
    """A running head node."""

    address: str
    dashboard: str
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` with a dashboard and token authentication, as users start it."""
    folder = tempfile.mkdtemp(prefix="sh")  # a socket's path has at most 107 bytes, so not below tmp_path
    gcs, dashboard, agent, client = free_ports(4)
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "segtrain-test", "HOME": folder}
    environment["PATH"] = f"{RAY.parent}:{environment['PATH']}"  # a job's `python` is the one that Ray was started with
    command = [str(RAY), "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0", "--dashboard-host=127.0.0.1"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}", f"--temp-dir={folder}", "--object-store-memory=150000000"]
    with Path(folder, "head.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for_port(dashboard)
        yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment)
    finally:
        process.kill()  # SIGTERM would drain the node for 30 s; all that the node started dies with this process
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_port(port: int) -> None:
    def listens() -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens, f"something listens on port {port}")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, data_root: str, tiny_recipe: Path) -> Path:
    """A checkout without an environment, a recipe, and a data set in `set`.

    The copy's loop says where it was loaded from, because the tests' own environment has segtrain installed too.
    """
    folder = tmp_path_factory.mktemp("project")
    for part in ("segtrain", "jobs"):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "segtrain/training/loop.py").open("a") as loop:
        loop.write('\nimport logging\nlogging.getLogger("segtrain").warning("loaded from %s", __file__)\n')
    shutil.copy(tiny_recipe, folder)
    shutil.copytree(data_root, folder / "set")
    return folder


def submit(head: Head, project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    submission = [str(RAY), "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *command]
    return subprocess.run(
        submission, cwd=project, env=head.environment, capture_output=True, text=True, check=False, timeout=900
    )


def test_a_submitted_job_trains_with_the_uploaded_code(head: Head, project: Path, tmp_path: Path) -> None:
    job = ("python", "jobs/train.py", "tiny.yaml", "data.root=set", f"run.storage={tmp_path}")
    result = submit(head, project, *job)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "hard dice" in result.stdout
    assert (tmp_path / "tiny/best/model.keras").exists()
    loaded = next(line for line in result.stdout.splitlines() if "loaded from" in line)
    assert "working_dir_files" in loaded, "workers must not take another segtrain from their environment"

    score = ("python", "jobs/evaluate.py", str(tmp_path / "tiny"), str(project / "set"), "inference.threshold=0.5")
    scored = submit(head, project, *score)
    assert scored.returncode == 0, scored.stdout + scored.stderr
    best = json.loads((tmp_path / "tiny/best/metrics.json").read_text())["dice_hard_original"]
    assert f"{best:.6g}" in scored.stdout


def test_a_submitted_job_predicts_with_a_run(head: Head, project: Path, tmp_path: Path) -> None:
    train = ("python", "jobs/train.py", "tiny.yaml", f"data.root={project / 'set'}", f"run.storage={tmp_path}")
    assert submit(head, project, *train).returncode == 0
    predict = ("python", "jobs/predict.py", str(tmp_path / "tiny"), str(project / "set"), str(tmp_path / "masks"))
    result = submit(head, project, *predict)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(list((tmp_path / "masks/masks").glob("*.png"))) == 8


def test_a_submitted_sweep_runs_its_trials_and_leaves_a_leaderboard(head: Head, project: Path, tmp_path: Path) -> None:
    space = ("tune.space={model.filters: {grid: [2, 3]}}", "tune.search=grid")
    settings = (f"data.root={project / 'set'}", f"run.storage={tmp_path}", "run.name=sweep")
    result = submit(head, project, "python", "jobs/tune.py", "tiny.yaml", *settings, *space)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len((tmp_path / "sweep/leaderboard.csv").read_text().splitlines()) == 1 + 2


def test_a_stopped_job_has_saved_its_last_step_and_the_same_command_goes_on(
    head: Head, project: Path, tmp_path: Path
) -> None:
    long = (f"data.root={project / 'set'}", f"run.storage={tmp_path}", "run.name=long", "train.epochs=400")
    command = ("python", "jobs/train.py", "tiny.yaml", *long, "run.progress_every_s=0.5")
    first = start(head, project, "first", *command)
    wait_until(lambda: "step" in logs(head, first), "the job takes a step")
    stopped = ray_job(head, "stop", first)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    said = logs(head, first)
    saved = int(re.search(r"saved at step (\d+)", said)[1])  # type: ignore[index]
    assert "interrupted; the same command goes on from here" in said
    assert "ray job stop` leaves" not in said, "the submission gives it time"
    second = start(head, project, "second", *command)
    wait_until(lambda: "step" in logs(head, second), "the job goes on")
    ray_job(head, "stop", second)
    attempts = goodput.read(str(tmp_path / "long"), Storage(StorageConfig())).attempts
    assert [(attempt.first_step, attempt.end) for attempt in attempts] == [(0, "stopped"), (saved, "stopped")]
    assert attempts[0].saved_step == saved


def test_a_job_that_would_be_killed_before_it_can_save_says_so(head: Head, project: Path, tmp_path: Path) -> None:
    settings = (f"data.root={project / 'set'}", f"run.storage={tmp_path}", "run.name=hasty")
    said = submit(head, project, "python", "jobs/train.py", "tiny.yaml", *settings).stdout
    assert "`ray job stop` leaves this job 3 s to save" in said


def start(head: Head, project: Path, name: str, *command: str) -> str:
    """Submit with the README's settings, and do not wait."""
    patient = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}})
    options = ("--no-wait", "--submission-id", name, "--runtime-env-json", patient, "--working-dir", ".")
    result = ray_job(head, "submit", *options, "--", *command, folder=project)
    assert result.returncode == 0, result.stdout + result.stderr
    return name


def logs(head: Head, name: str) -> str:
    return ray_job(head, "logs", name).stdout


def ray_job(head: Head, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**head.environment, "RAY_ADDRESS": head.dashboard}
    return subprocess.run(
        [str(RAY), "job", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def test_submitted_jobs_prepare_and_look_at_data(head: Head, project: Path, tmp_path: Path) -> None:
    small = ("source.cars=5", "source.views=2", "source.height=64", "source.width=96")
    prepared = submit(head, project, "python", "jobs/prepare.py", "synthetic", str(tmp_path / "cars"), *small)
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    looked_at = submit(head, project, "python", "jobs/data.py", "inspect", str(tmp_path / "cars"))
    assert "10 pictures in 5 groups" in looked_at.stdout


def test_a_submitted_jobs_mistake_is_its_message_and_a_failed_job(head: Head, project: Path) -> None:
    result = submit(head, project, "python", "jobs/train.py", "tiny.yaml", "data.root=set")
    assert result.returncode != 0
    assert "error: run.storage: 'runs' would be deleted with this job's copy" in result.stdout
    assert "Traceback" not in result.stdout


def test_a_job_on_the_clusters_machine_joins_it(head: Head, project: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "jobs/train.py"), "tiny.yaml", "data.root=set"]
    command += [f"run.storage={tmp_path}", "cluster.cpus_per_worker=2", "--dry-run"]
    environment = {**head.environment, "RAY_ADDRESS": head.address}
    result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "cluster   1 node with 2 CPUs and 0 GPUs" in result.stdout

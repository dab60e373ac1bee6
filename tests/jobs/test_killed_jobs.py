"""Jobs that are killed or stopped after each kind of write, and at random moments: the same command ends right.

What comes out is compared with what an undisturbed job makes; nothing half-written stays.
"""

import json
import os
import random
import re
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.held_jobs import HeldJob, running
from tests.support.places import EARLIER_VERSION

RANDOM_MOMENTS = 5
pytestmark = [pytest.mark.slow, pytest.mark.ray]


@dataclass(frozen=True)
class Job:
    """A command line in a folder, and what it must leave there."""

    arguments: list[str]
    results: Callable[[Path], Any]
    """What is compared with the undisturbed job's: plain values."""
    only: str = ""
    """Kinds of writes that are tried: those that have this; what workers of a sweep write is tried elsewhere."""


def files(*patterns: str) -> Callable[[Path], dict[str, bytes]]:
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


def data_set(folder: Path) -> Any:
    facts = json.loads((folder / "new" / "manifest.json").read_text())
    shards = [(shard["rows"], shard["bytes"]) for shard in facts["shards"]]
    return (
        facts["fingerprint"],
        shards,
        sorted(path.name for path in (folder / "new").iterdir() if "index" not in path.name),
    )


def report(folder: Path) -> Any:
    return (folder / "report.html").read_text().rstrip().endswith("</html>")


def sweep(folder: Path) -> Any:
    trials = [json.loads(path.read_text()) for path in sorted((folder / "runs").glob("small/trials/*/trial.json"))]
    scores = [[round(one["dice"], 5) for one in trial["history"]] for trial in trials]
    rows = (folder / "runs" / "small" / "leaderboard.csv").read_text().splitlines()
    return [trial["status"] for trial in trials], scores, len(rows), (folder / "runs/small/best.yaml").exists()


JOBS = {
    "prepare": Job(["prepare", "folder", "new", "source.path=raw", "prepare.shard_bytes=4096"], data_set),
    "predict": Job(["predict", "runs/finished", "set", "new"], files("new/masks/*", "new/parts/*")),
    "evaluate": Job(["evaluate", "runs/finished", "set", "--out", "new"], files("new/*.csv", "new/worst/*")),
    "report": Job(["report", "runs/killed", "--out", "report.html"], report),
    "tune": Job(["tune", "small.yaml", "data.root=set", "run.storage=runs", "--resume=auto"], sweep, only="small"),
}
SMALL_SWEEP = """
data: {height: 48, width: 64}
model: {filters: 2, depth: 1}
train: {epochs: 1, global_batch_size: 8, deterministic: true}
evaluation: {panels: 0}
tune: {space: {optimizer.kind: {choice: [adam, sgd]}}, search: grid, max_trials: 2, max_concurrent: 1, stop: none}
"""


def lay_out(folder: Path) -> Path:
    """The folder of one attempt, with what the jobs read."""
    with tarfile.open(EARLIER_VERSION) as archive:
        archive.extractall(folder, filter="data")
    made = folder / "segtrain-e885e46"
    for name in ("raw", "set", "runs"):
        (made / name).rename(folder / name)
    shutil.rmtree(made)
    (folder / "small.yaml").write_text(SMALL_SWEEP)
    return folder


def start(job: Job, folder: Path, name: str, **hold: Any) -> Any:
    return running(*job.arguments, folder=folder / name, cwd=folder, TMPDIR=str(folder / "tmp"), **hold)


@pytest.fixture(scope="module", params=sorted(JOBS))
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Job, Any, list[str], float]:
    """A job, what it makes when nothing disturbs it, the kinds of its writes, and the seconds it takes."""
    job = JOBS[request.param]
    folder = lay_out(tmp_path_factory.mktemp("undisturbed"))
    (folder / "tmp").mkdir()
    began = time.monotonic()
    with start(job, folder, "hook") as process:
        assert process.wait() == 0, process.output
        kinds = list(dict.fromkeys(write.kind for write in process.writes if job.only in write.url))
    assert kinds
    return job, job.results(folder), kinds, time.monotonic() - began


def end(process: HeldJob, how: signal.Signals, *codes: int) -> None:
    """Kill it with all that it has started; or ask it to end, which it does with one of `codes`, and let it go on."""
    if how == signal.SIGKILL:
        process.kill()
        return
    process.stop()
    process.let_go()
    assert process.wait() in codes, process.output
    assert "Traceback" not in process.output, process.output


def ends_right_when_started_again(job: Job, folder: Path, expected: Any) -> None:
    with start(job, folder, "again") as process:
        assert process.wait() == 0, process.output
    assert job.results(folder) == expected
    left = [path.name for path in folder.rglob("*") if path.name.endswith(".segtrain-tmp")]
    assert left == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_after_each_kind_of_write_the_same_command_ends_right(
    undisturbed: tuple[Job, Any, list[str], float], how: signal.Signals, tmp_path: Path
) -> None:
    job, expected, kinds, _ = undisturbed
    for number, kind in enumerate(kinds):
        folder = tmp_path / str(number)
        folder.mkdir()
        lay_out(folder)
        (folder / "tmp").mkdir()
        with start(job, folder, "hook", hold=f"^{re.escape(kind)}$", when="after") as process:
            assert process.wait_until_held(), f"no {kind}:\n{process.output}"
            end(process, how, 0, 143)
        if how == signal.SIGTERM:
            assert os.listdir(folder / "tmp") == [], f"left after {kind}"
        ends_right_when_started_again(job, folder, expected)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_at_random_moments_the_same_command_ends_right(
    undisturbed: tuple[Job, Any, list[str], float], how: signal.Signals, tmp_path: Path
) -> None:
    job, expected, _, took_s = undisturbed
    for number in range(RANDOM_MOMENTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        lay_out(folder)
        (folder / "tmp").mkdir()
        with start(job, folder, "hook") as process:
            time.sleep(random.uniform(0, took_s))
            if process.process.poll() is None:
                # Before the job begins and after its end there is nothing to tidy: the signal ends the interpreter.
                end(process, how, 0, 143, -signal.SIGTERM)
        ends_right_when_started_again(job, folder, expected)

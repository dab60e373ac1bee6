"""Losses that a fleet of machines brings, each during a training on nodes in network namespaces.

The run ends as if nothing had happened, and nothing of it is left on the cluster.

Each case prints a line of the table: what was done, steps that had to be taken again, seconds until the driver said so,
and until a next step was begun. `pytest -m slow -s tests/launch/test_fault_matrix.py`
"""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.config import StorageConfig
from segtrain.runs import goodput
from segtrain.runs.goodput import Goodput
from segtrain.storage.files import Storage, join
from tests.support.labelled import write_rectangles
from tests.support.namespaces import HEAD, NamespacedCluster, missing
from tests.support.seaweed import S3Server, serve_s3

pytestmark = [
    pytest.mark.slow,  # 30 to 120 s each
    pytest.mark.skipif(missing() is not None, reason=f"no nodes in namespaces here: {missing()}"),
]

PICTURES, HEIGHT, WIDTH = 40, 32, 48
EPOCHS, STEPS_PER_EPOCH, SAVED_EVERY = 4, 8, 4
STEPS = EPOCHS * STEPS_PER_EPOCH
HIT_AT = 10  # in the second epoch, two steps after a checkpoint
WITHIN_S = 300.0
"""A run that a fault has hit ends at most so long after it began; undisturbed it takes 40 s."""
STAYS = "AutoscalingCoordinator"
"""Ray keeps one such actor a cluster, from the first Ray Train run on."""


@dataclass
class Attempt:
    """A driver that runs on the head, its lines as they come, and what its workers note."""

    process: Any
    notes: Path
    lines: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip()))

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def said_at(self, words: str) -> float | None:
        return next((at for at, line in self.lines if words in line), None)

    def wait_to_say(self, words: str, within_s: float = WITHIN_S) -> float:
        self._wait(lambda: self.said_at(words) is not None, f"to say {words!r}", within_s)
        at = self.said_at(words)
        assert at is not None
        return at

    def steps(self) -> list[dict[str, Any]]:
        path = self.notes / "steps.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_step(self, step: int, workers: int | None = None) -> dict[int, int]:
        """Wait until all workers have begun a step. Returns rank -> process id."""
        found: dict[int, int] = {}

        def begun() -> bool:
            lines = [
                line for line in self.steps() if line["step"] >= step and workers in (None, line["workers"])
            ]  # the newest attempt's come last
            found.update({line["rank"]: line["pid"] for line in lines if line["workers"] == lines[-1]["workers"]})
            return bool(lines) and len(found) == lines[-1]["workers"]

        self._wait(begun, f"to begin step {step}")
        return found

    def end(self) -> int:
        self._wait(lambda: self.process.poll() is not None, "to end")
        self._reader.join(timeout=10.0)
        return int(self.process.returncode)

    def _wait(self, there: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> None:
        deadline = time.monotonic() + within_s
        while not there():
            ended = self.process.poll() is not None and what != "to end"
            if ended:
                self._reader.join(timeout=10.0)
            if (ended and not there()) or time.monotonic() > deadline:
                raise AssertionError(f"the driver was {what} and did not:\n{self.text[-6000:]}")
            time.sleep(0.05)


@dataclass
class Fleet:
    """The cluster, the S3 server, the data set and the runs in it."""

    cluster: NamespacedCluster
    server: S3Server
    root: str
    folder: Path
    rows: list[str] = field(default_factory=list)

    def start(self, name: str, *settings: str) -> Attempt:
        """The same command for the first attempt of a run and for those after it."""
        notes = self.folder / name
        notes.mkdir(exist_ok=True)
        fields = [
            f"data.root={self.root}/set",
            f"run.storage={self.root}/runs",
            f"run.name={name}",
            f"data.height={HEIGHT}",
            f"data.width={WIDTH}",
            "data.cache=off",
            "augment.rotate_degrees=10.0",
            "model.filters=4",
            "model.depth=2",
            "model.norm=group",
            "model.norm_groups=2",
            "model.dropout=0.2",
            f"train.epochs={EPOCHS}",
            "train.global_batch_size=4",
            "train.precision=float64",
            "train.deterministic=true",
            "evaluation.panels=1",
            f"checkpoint.every_steps={SAVED_EVERY}",
            "checkpoint.keep=9",
            "cluster.workers=2",
            "run.progress_every_s=1",
            *settings,
        ]
        command = [sys.executable, "-u", "-m", "tests.support.fault_driver", str(notes), *fields]
        process = self.cluster.run(HEAD, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return Attempt(process, notes)

    @property
    def storage(self) -> Storage:
        return Storage(StorageConfig())

    def url(self, name: str) -> str:
        return f"{self.root}/runs/{name}"

    def weights(self, name: str) -> dict[str, np.ndarray]:
        data = self.storage.read_bytes(join(self.url(name), "checkpoints", f"step-{STEPS:08d}", "arrays.npz"))
        with np.load(io.BytesIO(data)) as stored:
            return {key: stored[key] for key in stored.files}

    def losses(self, name: str) -> list[tuple[int, float]]:
        lines = self.storage.read_bytes(join(self.url(name), "metrics.jsonl")).splitlines()
        records = [json.loads(line) for line in lines]
        return [(one["step"], one["loss"]) for one in records if one["kind"] == "step"]

    def goodput(self, name: str) -> Goodput:
        return goodput.read(self.url(name), self.storage)

    def samples(self, name: str) -> dict[int, list[int]]:
        taken: dict[int, set[int]] = {}
        for line in (self.folder / name / "steps.jsonl").read_text().splitlines():
            note = json.loads(line)
            taken.setdefault(note["step"], set()).update(note["keys"])
        return {step: sorted(keys) for step, keys in sorted(taken.items())}

    def check_end(self, name: str, attempt: Attempt, *, exactly: bool = True) -> None:
        """The run ended as the undisturbed one did, and holds nothing of the cluster any more."""
        assert attempt.end() == 0, attempt.text[-6000:]
        wanted, found = self.weights("undisturbed"), self.weights(name)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            if exactly:
                assert np.array_equal(found[key], value), key
            else:
                np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-10, err_msg=key)
        if exactly:
            assert self.losses(name) == self.losses("undisturbed")
        else:
            np.testing.assert_allclose(self.losses(name), self.losses("undisturbed"), rtol=0, atol=1e-10)
        assert self.samples(name) == self.samples("undisturbed")
        self.check_nothing_left()

    def check_nothing_left(self) -> None:
        deadline = time.monotonic() + 40.0
        while True:
            actors = [actor for actor in self.cluster.actors() if STAYS not in actor["ActorClassName"]]
            groups = self.cluster.placement_groups()
            if not actors and not groups:
                return
            assert time.monotonic() < deadline, f"left behind: {actors} {groups}"
            time.sleep(0.5)

    def row(self, what: str, name: str, attempt: Attempt, hit_at: float, said: str | None, *, again: int) -> None:
        """Print a line of the table. `again` is how many steps were to be begun again at most."""
        begun = [(note["step"], note["pid"]) for note in attempt.steps() if note["rank"] == 0]
        lost = len(set(begun)) - len({step for step, _ in begun})
        assert lost <= again, f"{lost} steps were begun again"
        assert sum(self.goodput(name).lost_in()) <= lost, "a step that was begun need not have been read"
        said_at = attempt.said_at(said) if said else None
        pids = {note["pid"] for note in attempt.steps() if note["time"] <= hit_at}
        following = [note["time"] for note in attempt.steps() if note["time"] > hit_at and note["pid"] not in pids]
        noticed = "-" if said_at is None else f"{said_at - hit_at:.1f}"
        gone_on = f"{min(following) - hit_at:.1f}" if following else "-"
        self.rows.append(f"| {what} | {lost} | {noticed} | {gone_on} |")
        print(f"\n{self.rows[-1]}")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with serve_s3() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        root = f"s3://{server.bucket}/fleet"
        write_rectangles(folder / "raw", f"{root}/set", pictures=PICTURES, height=HEIGHT, width=WIDTH)
        with small_disk(folder / "small"), NamespacedCluster(["first", "second"], s3=server) as cluster:
            fleet = Fleet(cluster, server, root, folder)
            undisturbed = fleet.start("undisturbed")
            assert undisturbed.end() == 0, undisturbed.text[-6000:]
            yield fleet
    print("\n| fault | lost steps | s until it is said | s until a next step |\n| --- | --- | --- | --- |")
    print("\n".join(fleet.rows))


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 64 KiB, less than the data set; mounted before the nodes, which see it then."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(autouse=True)
def two_workers_again(fleet: Fleet) -> Iterator[None]:
    """Every case begins with a head and two workers."""
    fresh = iter("abcdefghijklmnopqrstuvwxyz")
    while len(fleet.cluster.nodes) < 3:
        name = next(name for name in (f"spare-{letter}" for letter in fresh) if name not in fleet.cluster.nodes)
        fleet.cluster.add_node(name)
    yield
    if HEAD not in fleet.cluster.nodes:
        return
    for name in set(fleet.cluster.nodes) & set(fleet.cluster.draining()):
        fleet.cluster.kill_node(name)


def node_of(fleet: Fleet, pid: int) -> str:
    return next(name for name in fleet.cluster.nodes if pid in fleet.cluster.pids(name))


def test_a_killed_worker(fleet: Fleet) -> None:
    attempt = fleet.start("killed")
    pids = attempt.wait_for_step(HIT_AT)
    hit_at = time.time()
    os.kill(pids[1], signal.SIGKILL)
    noticed = attempt.wait_to_say("lost; restarting from the last checkpoint (1 of 3)")
    assert noticed - hit_at <= 60.0
    fleet.check_end("killed", attempt)
    fleet.row("worker killed (SIGKILL)", "killed", attempt, hit_at, "restarting", again=SAVED_EVERY)


def test_the_chief_killed_while_it_saves(fleet: Fleet) -> None:
    attempt = fleet.start("saving")
    pids = attempt.wait_for_step(HIT_AT + 2)  # step 12 is begun once the checkpoint after it, 12, is being written
    hit_at = time.time()
    os.kill(pids[0], signal.SIGKILL)
    fleet.check_end("saving", attempt)
    fleet.row("chief killed while it saves", "saving", attempt, hit_at, "restarting", again=SAVED_EVERY + 1)


def test_a_node_that_is_lost(fleet: Fleet) -> None:
    attempt = fleet.start("lost")
    pids = attempt.wait_for_step(HIT_AT)
    hit_at = time.time()
    fleet.cluster.kill_node(node_of(fleet, pids[1]))
    attempt.wait_to_say("restarting from the last checkpoint (1 of 3)")
    fleet.cluster.add_node("third")
    fleet.check_end("lost", attempt)
    fleet.row("node lost, another one comes", "lost", attempt, hit_at, "restarting", again=SAVED_EVERY)


def test_a_node_that_is_drained_with_notice(fleet: Fleet) -> None:
    attempt = fleet.start("drained")
    pids = attempt.wait_for_step(HIT_AT)
    node = node_of(fleet, pids[1])
    hit_at = time.time()
    fleet.cluster.drain(node, deadline_s=60.0)
    attempt.wait_to_say(f"{node} is about to go: a checkpoint is saved first", 60.0)
    attempt.wait_to_say("going on from there", 60.0)
    fleet.cluster.kill_node(node)
    fleet.cluster.add_node("fourth")
    fleet.check_end("drained", attempt)
    assert len(fleet.goodput("drained").attempts) == 2
    fleet.row("node drained with notice", "drained", attempt, hit_at, "about to go", again=0)


def test_a_driver_that_is_killed_and_started_again(fleet: Fleet) -> None:
    first = fleet.start("driver")
    first.wait_for_step(HIT_AT)
    hit_at = time.time()
    first.process.kill()
    first.end()
    fleet.check_nothing_left()
    second = fleet.start("driver")
    fleet.check_end("driver", second)
    assert "resuming" in second.text
    fleet.row("driver killed, same command again", "driver", second, hit_at, "resuming", again=SAVED_EVERY)


def test_a_driver_that_is_asked_to_end(fleet: Fleet) -> None:
    first = fleet.start("asked")
    first.wait_for_step(HIT_AT)
    hit_at = time.time()
    first.process.terminate()
    assert first.end() == 143
    assert "interrupted; the same command goes on from here" in first.text
    ended_after_s = time.time() - hit_at
    second = fleet.start("asked")
    fleet.check_end("asked", second)
    fleet.row(f"SIGTERM to the driver (gone after {ended_after_s:.1f} s)", "asked", second, hit_at, None, again=0)


def test_a_peer_that_is_frozen(fleet: Fleet) -> None:
    attempt = fleet.start("frozen", "cluster.stuck_after_s=10", "storage.deadline_s=8")
    pids = attempt.wait_for_step(HIT_AT)
    hit_at = time.time()
    fleet.cluster.freeze(pids[1])
    noticed = attempt.wait_to_say("worker 1 gives no answer")
    assert noticed - hit_at <= 10.0 + 5.0
    fleet.check_end("frozen", attempt)
    assert not Path(f"/proc/{pids[1]}").exists(), "the frozen process is still there"
    fleet.row("peer frozen (SIGSTOP), deadline 10 s", "frozen", attempt, hit_at, "gives no answer", again=SAVED_EVERY)


def test_a_step_that_never_ends(fleet: Fleet) -> None:
    attempt = fleet.start("stuck", "cluster.stuck_after_s=10", "storage.deadline_s=8")
    attempt.wait_for_step(HIT_AT)
    hit_at = time.time()
    (fleet.folder / "stuck/stick-1").touch()
    noticed = attempt.wait_to_say("restarting from the last checkpoint (1 of 3)")
    assert noticed - hit_at <= 10.0 + 5.0 + 1.0  # the step under way ends first
    assert "worker 1 stuck at support/fault_driver.py" in attempt.text
    assert "in stick_at_a_known_place" in attempt.text
    stacks = [name for name in fleet.storage.list(join(fleet.url("stuck"), "stuck")) if name.startswith("worker-1-")]
    assert "segtrain-watchdog" in fleet.storage.read_bytes(join(fleet.url("stuck"), "stuck", stacks[0])).decode()
    fleet.check_end("stuck", attempt)
    fleet.row("step that never ends, deadline 10 s", "stuck", attempt, hit_at, "restarting", again=SAVED_EVERY)


def test_a_cut_network(fleet: Fleet) -> None:
    attempt = fleet.start("cut")
    pids = attempt.wait_for_step(HIT_AT)
    node = node_of(fleet, pids[1])
    hit_at = time.time()
    fleet.cluster.cut(node)
    noticed = attempt.wait_to_say("restarting from the last checkpoint (1 of 3)")
    assert noticed - hit_at <= 40.0
    fleet.cluster.add_node("fifth")
    fleet.check_end("cut", attempt)
    last = max(note["time"] for note in attempt.steps() if note["pid"] == pids[1])
    assert last - hit_at < 5.0, "the worker that is cut off goes on"
    fleet.cluster.kill_node(node)
    fleet.row("network of a node cut", "cut", attempt, hit_at, "restarting", again=SAVED_EVERY)


def test_a_lone_worker_that_is_cut_off_ends_itself(fleet: Fleet) -> None:
    """It needs no other worker for its steps, so it would go on beside the one that takes its place."""
    (fleet.folder / "alone").mkdir()
    slow = fleet.folder / "alone/slow"
    slow.write_text("6.0")  # else it could come to the run's end before
    attempt = fleet.start("alone", "cluster.workers=1")
    pids = attempt.wait_for_step(1)
    node = node_of(fleet, pids[0])
    hit_at = time.time()
    fleet.cluster.cut(node)
    attempt.wait_to_say("restarting from the last checkpoint (1 of 3)")
    attempt.wait_for_step(2)
    while Path(f"/proc/{pids[0]}").exists():
        assert time.time() - hit_at < 110.0, "the worker that is cut off goes on"
        time.sleep(0.5)
    ended_after_s = time.time() - hit_at
    slow.unlink()
    fleet.check_end("alone", attempt, exactly=False)
    fleet.cluster.kill_node(node)
    fleet.row(
        f"lone worker cut off (it ended itself after {ended_after_s:.0f} s)", "alone", attempt, hit_at, None, again=16
    )


def test_s3_away_for_a_minute(fleet: Fleet) -> None:
    attempt = fleet.start("away")
    attempt.wait_for_step(HIT_AT)
    gateway = fleet.cluster.gateway
    assert gateway is not None
    hit_at = time.time()
    with gateway.away():
        time.sleep(60.0)
    back_at = time.time()
    fleet.check_end("away", attempt)
    assert len(fleet.goodput("away").attempts) == 1, "a minute without S3 ends no attempt"
    fleet.row("S3 away for 60 s", "away", attempt, hit_at, None, again=0)
    after = [note["time"] for note in attempt.steps() if note["time"] > back_at]
    print(f"the next step came {min(after) - back_at:.1f} s after S3 was back")


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_checkpoint(fleet: Fleet, damage: str) -> None:
    first = fleet.start(damage)
    first.wait_for_step(HIT_AT + 4)
    hit_at = time.time()
    first.process.kill()
    first.end()
    fleet.check_nothing_left()
    folder = join(fleet.url(damage), "checkpoints")
    finished = [n for n in fleet.storage.list(folder) if fleet.storage.exists(join(folder, n, "checksums.json"))]
    arrays = join(folder, max(finished), "arrays.npz")
    whole = fleet.storage.read_bytes(arrays)
    if damage == "missing":
        fleet.storage.delete(arrays)
    else:
        fleet.storage.write_bytes(arrays, whole[: len(whole) // 2])
    second = fleet.start(damage)
    fleet.check_end(damage, second)
    assert f"checkpoint {max(finished)} is damaged" in second.text
    fleet.row(f"newest checkpoint {damage}", damage, second, hit_at, "is damaged", again=2 * SAVED_EVERY + 1)


def test_a_range_of_workers_shrinks_and_grows_with_the_cluster(fleet: Fleet) -> None:
    (fleet.folder / "elastic").mkdir()
    slow = fleet.folder / "elastic/slow"
    slow.write_text("1.5")  # so that there are steps left when the third machine is there
    attempt = fleet.start("elastic", "cluster.workers=[1, 2]", "cluster.grow_after_s=4")
    pids = attempt.wait_for_step(HIT_AT)
    hit_at = time.time()
    fleet.cluster.kill_node(node_of(fleet, pids[1]))
    attempt.wait_for_step(HIT_AT + 1, workers=1)
    fleet.cluster.add_node("sixth")
    attempt.wait_to_say("room for 1 more")
    slow.unlink()
    fleet.check_end("elastic", attempt, exactly=False)
    workers = [attempt.workers for attempt in fleet.goodput("elastic").attempts]
    assert workers == [2, 1, 2]
    fleet.row("2 workers, 1 after a loss, 2 again", "elastic", attempt, hit_at, "restarting", again=SAVED_EVERY)


def test_a_node_cache_on_a_full_disk(fleet: Fleet) -> None:
    hit_at = time.time()
    attempt = fleet.start("full", "data.cache=disk", f"data.node_cache={fleet.folder}/small/cache")
    fleet.check_end("full", attempt)
    assert "takes nothing more (No space left on device); what it lacks is downloaded" in attempt.text
    fleet.row("disk of the node cache full", "full", attempt, hit_at, None, again=0)


def test_a_head_that_is_lost(fleet: Fleet) -> None:
    """The last case: the cluster ends with its head, and the same command goes on, on a new one."""
    first = fleet.start("head")
    first.wait_for_step(HIT_AT)
    hit_at = time.time()
    fleet.cluster.kill_node(HEAD)
    first.end()
    fleet.cluster.stop()
    fleet.cluster = NamespacedCluster(["first", "second"], s3=fleet.server)
    with fleet.cluster:
        second = fleet.start("head")
        fleet.check_end("head", second)
        fleet.row("head lost, same command on a new cluster", "head", second, hit_at, "resuming", again=SAVED_EVERY)

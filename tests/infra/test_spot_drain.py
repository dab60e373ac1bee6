"""The watcher of spot notices, against a server that answers as EC2's metadata do, and once against a real Ray."""

import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.places import REPOSITORY
from tests.support.waiting import wait_until

SCRIPT = REPOSITORY / "infra/node/spot_drain.py"
NODE = "0a" * 28
RAYLET = ["/site-packages/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=/tmp/ray/session/sockets/raylet"]


class Ec2:
    """What the metadata say at the moment; tokens are checked, and `expire` makes those given so far worthless."""

    def __init__(self) -> None:
        self.notice: str | None = None
        self.asked = 0
        self.refused = 0
        self.broken = False
        self._tokens: set[str] = set()
        self._given = 0
        ec2 = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                ec2._given += 1
                ec2._tokens.add(f"token-{ec2._given}")
                is_right = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                self.answer(200 if is_right else 400, f"token-{ec2._given}")

            def do_GET(self) -> None:
                ec2.asked += 1
                if ec2.broken:
                    self.answer(500, "")
                elif self.headers["X-aws-ec2-metadata-token"] not in ec2._tokens:
                    ec2.refused += 1
                    self.answer(401, "")
                elif self.path == "/latest/meta-data/spot/instance-action" and ec2.notice is not None:
                    self.answer(200, ec2.notice)
                else:
                    self.answer(404, "")

            def answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def give_notice(self, seconds: float) -> None:
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        self.notice = json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})

    def expire(self) -> None:
        self._tokens.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Machine:
    """A machine with a Ray node, told by its command lines, and a `ray` that writes down how it was called."""

    def __init__(self, folder: Path, ec2: Ec2) -> None:
        self.log, self.proc, self._ec2 = folder / "spot.log", folder / "proc", ec2
        self._calls, self._failures, self.ray = folder / "calls", folder / "failures", folder / "ray"
        self._calls.touch()
        self.ray.write_text(
            f'#!/bin/sh\necho "$@" >>{self._calls}\n'
            f'[ -s {self._failures} ] || exit 0\nsed -i 1d {self._failures}\necho "the cluster is away" >&2\nexit 1\n'
        )
        self.ray.chmod(self.ray.stat().st_mode | stat.S_IXUSR)
        self.runs("1", ["/sbin/init", "--gcs-address=10.0.0.9:1", "--node_id=ff"])  # not a raylet
        self.runs("40", [*RAYLET, f"--node_id={NODE}", "--gcs-address=10.0.0.1:6379"])

    def runs(self, pid: str, words: list[str]) -> None:
        (self.proc / pid).mkdir(parents=True)
        (self.proc / pid / "cmdline").write_bytes("\0".join([*words, ""]).encode())

    def fails(self, times: int) -> None:
        self._failures.write_text("\n" * times)

    def watcher(self, *more: str) -> list[str]:
        paths = ["--log", str(self.log), "--proc", str(self.proc), "--ray", str(self.ray)]
        return [sys.executable, str(SCRIPT), *paths, "--metadata-url", self._ec2.url, "--poll-s", "0.05", *more]

    def start(self) -> subprocess.Popen[str]:
        # With a proxy that nobody answers at: the metadata must be asked without it.
        away = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
        return subprocess.Popen(self.watcher(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=away)

    def calls(self) -> list[dict[str, str]]:
        """The options of each call of `ray drain-node`."""
        found = []
        for line in self._calls.read_text().splitlines():
            command, _, rest = line.partition(" ")
            assert command == "drain-node"
            found.append({name: value.strip() for name, _, value in (part.partition(" ") for part in rest.split("--"))})
        return found


@pytest.fixture
def ec2() -> Iterator[Ec2]:
    served = Ec2()
    yield served
    served.close()


@pytest.fixture
def machine(tmp_path: Path, ec2: Ec2) -> Machine:
    return Machine(tmp_path, ec2)


def ended(watcher: subprocess.Popen[str]) -> int:
    try:
        return watcher.wait(120)
    finally:
        watcher.kill()


def test_a_notice_drains_this_machines_node_with_ten_seconds_less_than_ec2_leaves(machine: Machine, ec2: Ec2) -> None:
    watcher = machine.start()
    wait_until(lambda: ec2.asked > 1)
    assert machine.calls() == []
    ec2.expire()  # a token lasts six hours; a machine may live longer
    wait_until(lambda: ec2.refused)
    ec2.give_notice(100)
    assert ended(watcher) == 0, machine.log.read_text()
    [call] = machine.calls()
    assert call["node-id"] == NODE
    assert call["address"] == "10.0.0.1:6379"
    assert call["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert 30 <= int(call["deadline-remaining-seconds"]) <= 90
    assert "terminate" in call["reason-message"]


def test_a_drain_that_fails_and_metadata_that_break_are_tried_again(machine: Machine, ec2: Ec2) -> None:
    ec2.broken = True
    machine.fails(2)
    watcher = machine.start()
    wait_until(lambda: ec2.asked > 1)
    ec2.broken = False
    ec2.notice = '{"action": "terminate", "time": "soon"}'  # cannot be read: two minutes are taken
    assert ended(watcher) == 0, machine.log.read_text()
    assert [60 <= int(call["deadline-remaining-seconds"]) <= 110 for call in machine.calls()] == [True] * 3
    assert "the cluster is away" in machine.log.read_text()


def test_when_the_time_is_over_and_nothing_was_drained_it_ends_with_code_1(machine: Machine, ec2: Ec2) -> None:
    machine.fails(1000)
    ec2.give_notice(1)
    assert ended(machine.start()) == 1
    assert {call["deadline-remaining-seconds"] for call in machine.calls()} == {"1"}


def test_in_the_background_one_watcher_stays_however_often_it_is_started(machine: Machine, ec2: Ec2) -> None:
    for _ in range(2):
        subprocess.run(machine.watcher("--background"), check=True, timeout=120)  # returns while the other watches on
    wait_until(lambda: "another" in machine.log.read_text())
    ec2.give_notice(60)
    wait_until(lambda: "is drained" in machine.log.read_text())
    assert len(machine.calls()) == 1


def test_a_link_in_the_place_of_its_log_is_not_followed(machine: Machine, tmp_path: Path) -> None:
    machine.log.symlink_to(tmp_path / "elsewhere")
    assert subprocess.run(machine.watcher("--background"), capture_output=True, timeout=120).returncode != 0
    assert not (tmp_path / "elsewhere").exists()


BUSY_NODE = """
import json, time
import ray
from ray._private.state import state
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0}, connect=True)
node = cluster.add_node(num_cpus=1)
work = ray.remote(lambda: time.sleep(300)).remote()  # a node without work would end at once
end = time.monotonic() + 300
while ray.available_resources().get("CPU"):
    assert time.monotonic() < end
    time.sleep(0.1)
print("\\n" + json.dumps([node.node_id, node.all_processes["raylet"][0].process.pid]), flush=True)
input()
print(json.dumps(state.get_draining_nodes()), flush=True)
ray.cancel(work, force=True)
ray.shutdown()
cluster.shutdown()
"""
"""In a process and a folder of its own: Ray leaves its address where other jobs look for one."""


@pytest.mark.slow
def test_ray_knows_the_deadline_of_a_node_whose_machine_got_a_notice(
    machine: Machine, ec2: Ec2, tmp_path: Path
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="sr", ignore_cleanup_errors=True) as folder,  # short, as sockets need
        subprocess.Popen(
            [sys.executable, "-c", BUSY_NODE],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"},
        ) as driver,
    ):
        assert driver.stdout
        node, pid = json.loads(next(line for line in driver.stdout if line.startswith("[")))
        real = tmp_path / "real"  # this node only: other raylets on this machine are none of our business
        real.mkdir()
        (real / str(pid)).symlink_to(f"/proc/{pid}")
        ec2.give_notice(60)
        before = time.time()
        ray_command = ["--ray", str(Path(sys.executable).with_name("ray")), "--proc", str(real)]
        ended = subprocess.run(machine.watcher(*ray_command), timeout=120, check=False)
        assert ended.returncode == 0, machine.log.read_text()
        said, _ = driver.communicate("\n", timeout=60)
        draining = json.loads(said.splitlines()[0])  # Ray's own lines come after it
        assert list(draining) == [node]
        assert 30 < draining[node] / 1000 - before < 60

"""A cluster of several machines on one machine comes up, breaks as it is told to, and leaves nothing."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.namespaces import HEAD, NamespacedCluster, missing
from tests.support.seaweed import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

ASK_ALL = """
import json, os, pathlib, socket, sys, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@ray.remote(num_cpus=0)
class Reporter:
    def report(self, local):
        import tests.support.namespaces, segtrain
        pathlib.Path(local, "note").write_text(socket.gethostname())
        return socket.gethostname(), os.getpid(), ray.util.get_node_ip_address()

ray.init(log_to_driver=False, logging_level="ERROR")
reporters = [
    Reporter.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
    for node in ray.nodes() if node["Alive"]
]
print(json.dumps(ray.get([reporter.report.remote(sys.argv[1]) for reporter in reporters])), flush=True)
sys.stdin.read()
"""

BUSY = """
import json, sys, ray
from ray._private.state import state
from ray.util.placement_group import placement_group

ray.init(log_to_driver=False, logging_level="ERROR")
held = placement_group([{"CPU": 1}], strategy="STRICT_PACK")
assert held.wait(20)
names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
print(names[state.placement_group_table(held.id)["bundles_to_node_id"][0]], flush=True)
sys.stdin.readline()
draining = [names[node] for node in ray._private.state.state.get_draining_nodes()]
later = [placement_group([{"CPU": 1}], strategy="SPREAD") for _ in range(4)]
placed = []
for group in later:
    if group.wait(3):
        placed.append(names[state.placement_group_table(group.id)["bundles_to_node_id"][0]])
print(json.dumps({"draining": draining, "placed": placed}), flush=True)
"""


@pytest.fixture(scope="module")
def cluster(s3_server: S3Server) -> Iterator[NamespacedCluster]:
    """A head and two workers of 2 CPUs; a test that breaks one puts another in its place."""
    with NamespacedCluster(["first", "second"], cpus=2, s3=s3_server) as cluster:
        yield cluster


def test_each_node_is_a_machine_of_its_own_and_answers(cluster: NamespacedCluster) -> None:
    assert cluster.alive_nodes() == ["first", HEAD, "second"]
    assert cluster.free()["CPU"] == 4.0
    driver = _start(cluster, ASK_ALL, str(cluster.local))
    assert driver.stdout
    answers = {host: (pid, address) for host, pid, address in json.loads(driver.stdout.readline())}
    assert set(answers) == {"first", HEAD, "second"}
    for name, (pid, address) in answers.items():
        assert address == cluster.nodes[name].address
        assert pid in cluster.pids(name, "ray::Reporter")
        assert (cluster.local_of(name) / "note").read_text() == name  # each wrote to the same path
    assert sorted(actor["Pid"] for actor in cluster.actors()) == sorted(pid for pid, _ in answers.values())
    driver.communicate("", timeout=30)
    _wait_until(lambda: not cluster.actors(), 10)
    assert list(cluster.local.iterdir()) == []


def test_nodes_reach_s3_through_the_gateway_and_not_while_it_is_away(cluster: NamespacedCluster) -> None:
    gateway = cluster.gateway
    assert gateway
    program = (
        "import sys; from segtrain.config import StorageConfig; from segtrain.storage.files import Storage\n"
        "Storage(StorageConfig(deadline_s=1)).write_bytes(f's3://segtrain/namespaces/{sys.argv[1]}', b'x' * 1000)"
    )

    def write() -> tuple[int, str]:
        writer = cluster.run(
            "first", [sys.executable, "-c", program, "file"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        _, said = writer.communicate(timeout=60)
        return writer.returncode, said

    assert write() == (0, "")
    assert any("namespaces/file" in request.path for request in gateway.requests)
    with gateway.away():
        code, said = write()
    assert code == 1
    assert "StorageError" in said
    assert write() == (0, "")


def test_a_node_that_is_killed_is_noticed_and_another_takes_its_place(cluster: NamespacedCluster) -> None:
    pids, namespace = cluster.pids("second"), cluster.nodes["second"].namespace
    assert len(pids) >= 3  # `ray start`, the raylet, agents
    cluster.kill_node("second")
    took_s = _wait_until(lambda: cluster.alive_nodes() == ["first", HEAD], 40)
    print(f"a killed node was noticed after {took_s:.1f} s")
    assert not any(_running(pid) for pid in pids)
    assert namespace not in _ip("netns")
    cluster.add_node("second")
    assert cluster.alive_nodes() == ["first", HEAD, "second"]


@pytest.mark.parametrize("time_", ["once", "again"])
def test_a_node_that_is_cut_off_is_noticed_within_40_s_and_one_healed_too_late_is_replaced(
    cluster: NamespacedCluster, time_: str
) -> None:
    raylet = cluster.pids("second", "raylet/raylet")  # idle workers end by themselves
    cluster.cut("second")
    took_s = _wait_until(lambda: "second" not in cluster.alive_nodes(), 40)
    print(f"a cut-off node was noticed after {took_s:.1f} s, {time_}")
    assert took_s > 10  # nobody told the head
    assert all(_running(pid) for pid in raylet)
    cluster.heal("second")
    # The node learns that it was given up, and ends itself.
    raylet_ended_s = _wait_until(lambda: not cluster.pids("second", "raylet/raylet"), 60)
    print(f"its raylet ended {raylet_ended_s:.1f} s after the network was back")
    cluster.kill_node("second")
    cluster.add_node("second")
    assert cluster.alive_nodes() == ["first", HEAD, "second"]


def test_a_short_cut_goes_unnoticed(cluster: NamespacedCluster) -> None:
    before = cluster.node_id("second")
    cluster.cut("second")
    time.sleep(5)
    cluster.heal("second")
    time.sleep(15)
    assert cluster.node_id("second") == before


def test_a_node_that_is_drained_is_listed_and_gets_nothing_new(cluster: NamespacedCluster) -> None:
    driver = _start(cluster, BUSY)
    assert driver.stdout
    busy = driver.stdout.readline().strip()
    other = ({"first", "second"} - {busy}).pop()
    cluster.drain(busy, deadline_s=120)
    assert cluster.draining() == [busy]
    said, _ = driver.communicate("\n", timeout=60)
    # The busy node has a CPU left, the other two.
    assert json.loads(said) == {"draining": [busy], "placed": [other, other]}
    _wait_until(lambda: not cluster.placement_groups(), 20)
    cluster.kill_node(busy)
    cluster.add_node(busy)


def test_a_frozen_process_goes_on_when_it_is_thawed(cluster: NamespacedCluster) -> None:
    clock = cluster.run(
        "first",
        [sys.executable, "-uc", "import time\nwhile True: print(time.time()); time.sleep(0.1)"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert clock.stdout
    assert clock.stdout.readline()
    cluster.freeze(clock.pid)
    time.sleep(1)
    assert Path(f"/proc/{clock.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    thawed = time.time()
    cluster.thaw(clock.pid)
    _wait_until(lambda: float(clock.stdout.readline()) > thawed, 5)  # type: ignore[union-attr]
    clock.kill()


def test_the_dashboard_answers_on_this_machine_and_nothing_is_left_after_stop(tmp_path: Path) -> None:
    cluster = NamespacedCluster(["only"], dashboard=True)
    cluster.start()
    process = cluster.run("only", ["sleep", "600"])
    pids = [pid for name in cluster.nodes for pid in cluster.pids(name)]
    try:
        assert process.pid in pids
        with urllib.request.urlopen(f"{cluster.dashboard_url}/api/version", timeout=10) as answer:
            assert json.load(answer)["ray_version"].startswith("2.")
        prefix, folder = cluster.nodes[HEAD].namespace.rsplit("-", 1)[0], cluster.local.parent
        assert prefix in _ip("netns")
        assert prefix in _ip("link")
    finally:
        cluster.stop()
    assert [pid for pid in pids if _running(pid)] == []
    assert prefix not in _ip("netns")
    assert prefix not in _ip("link")
    assert not folder.exists()


def test_a_node_that_does_not_start_is_told_in_ray_s_words_and_nothing_is_left() -> None:
    before = _mine()
    cluster = NamespacedCluster(["only"], resources={"CPU": 1})  # CPUs have an option of their own
    with pytest.raises(RuntimeError, match=r"(?s)not all nodes are up.*`CPU` cannot be a custom resource"):
        cluster.start()
    assert _mine() == before
    assert not cluster.local.parent.exists()


def _start(cluster: NamespacedCluster, program: str, *arguments: str) -> "subprocess.Popen[str]":
    """A driver on the head that ends when its input does."""
    command = [sys.executable, "-c", program, *arguments]
    return cluster.run(HEAD, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _wait_until(ready: Callable[[], bool], within_s: float) -> float:
    """How many seconds it took."""
    start = time.monotonic()
    while not ready():
        assert time.monotonic() < start + within_s
        time.sleep(0.1)
    return time.monotonic() - start


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _mine() -> list[str]:
    """What this process has made of namespaces and links."""
    names = [line.split()[:2] for line in (_ip("netns") + _ip("link")).splitlines()]
    return sorted(word for words in names for word in words if word.startswith(f"sg{os.getpid():x}"))


def _ip(what: str) -> str:
    return subprocess.run(["ip", what], capture_output=True, text=True, check=True).stdout

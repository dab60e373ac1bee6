"""A Ray cluster of several machines on one machine, to break: each node has its own network, host name and disk.

    with NamespacedCluster(["first", "second"]) as cluster:
        driver = cluster.run("head", [sys.executable, "driver.py"], stdout=subprocess.PIPE)
        cluster.cut("second")

A node is a network namespace whose one interface hangs on a bridge; the bridge's own address is this machine's, where
tests listen and from where they ask the head about the cluster. All processes see the same files, but for
`cluster.local`, which is each node's own, as a local disk is. Process ids are the machine's. Needs root and Linux.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.fault_proxy import FaultProxy
from tests.support.places import REPOSITORY
from tests.support.seaweed import S3Server

HEAD = "head"
GCS_PORT, DASHBOARD_PORT = 6379, 8265
READY_WITHIN_S = 300.0
GONE_WITHIN_S = 120.0
OBJECT_STORE_BYTES = 100 * 2**20
NAME_CHARACTERS = 12
"""More, and the path of a node's socket could pass the 107 bytes that Linux allows."""

HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
}
"""A node that does not answer is given up after 32 s at most; with Ray's defaults it is 65 s."""

_counter = itertools.count()

Process = subprocess.Popen[Any]


@functools.cache
def missing() -> str | None:
    """What this machine lacks for such a cluster, for a skip's reason; None where it lacks nothing."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    for program in ("ip", "nsenter", "unshare", "mount", "hostname"):
        if shutil.which(program) is None:
            return f"needs the program `{program}`"
    name = f"sgprobe{os.getpid():x}"
    probes = (
        ("network namespaces", ("ip", "netns", "add", name), ("ip", "netns", "del", name)),
        ("bridges", ("ip", "link", "add", name, "type", "bridge"), ("ip", "link", "del", name)),
        ("veth pairs", ("ip", "link", "add", name, "type", "veth"), ("ip", "link", "del", name)),
        ("namespaces of host names and mounts", ("unshare", "--uts", "--mount", "true"), ("true",)),
    )
    for what, make, undo in probes:
        made = subprocess.run(make, capture_output=True, text=True)
        if made.returncode:
            return f"needs {what}: {made.stderr.strip()}"
        subprocess.run(undo, check=True)
    return None


@dataclasses.dataclass
class Node:
    """One machine of the cluster."""

    name: str
    namespace: str
    link: str
    """The interface on the bridge; its other end is the node's `eth0`."""
    address: str
    ethernet: str
    folder: Path
    process: Process | None = None
    """Of `ray start`."""


class Gateway(FaultProxy):
    """The way from the nodes to an S3 server of this machine; it can be taken away, and can break single requests."""

    def __init__(self, upstream: str, host: str) -> None:
        super().__init__(upstream)
        self._host = host
        self._port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self.bring_back()
        return self

    def take_away(self) -> None:
        """Refuse connections from now on, and cut those that are open."""
        self._run(self._stop())

    def bring_back(self) -> None:
        """Listen, at the same address as before."""
        self._server = self._run(asyncio.start_server(self._serve, self._host, self._port))
        self._port = self._server.sockets[0].getsockname()[1]
        self.endpoint = f"http://{self._host}:{self._port}"

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """S3 is not there inside the block."""
        self.take_away()
        try:
            yield
        finally:
            self.bring_back()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class NamespacedCluster:
    """A head and workers, each a machine of its own; used as a context manager, or with `start` and `stop`.

    Args:
        workers: Names of the workers; the head's is `head`.
        cpus: CPUs that each worker offers.
        head_cpus: CPUs of the head; with 0 no work comes to lie on the node that no fault may hit.
        gpus: GPUs that each worker pretends to have.
        resources: Resources of one's own of each worker.
        dashboard: Whether the head has the dashboard, which jobs need; `dashboard_url` leads to it from this machine
            and from all nodes.
        environment: Variables of all nodes and of `run`.
        s3: A server of this machine that the nodes are to reach: their AWS variables lead to it through `gateway`.
    """

    def __init__(
        self,
        workers: Sequence[str] = (),
        *,
        cpus: int = 1,
        head_cpus: int = 0,
        gpus: int = 0,
        resources: Mapping[str, float] | None = None,
        dashboard: bool = False,
        environment: Mapping[str, str] | None = None,
        s3: S3Server | None = None,
    ) -> None:
        self._workers, self._cpus, self._head_cpus, self._gpus = list(workers), cpus, head_cpus, gpus
        self._resources, self._dashboard, self._s3 = dict(resources or {}), dashboard, s3
        self._environment = dict(environment or {})
        self._prefix = f"sg{os.getpid():x}{next(_counter) % 100:02d}"  # with `-99` still an interface's 15 characters
        self._numbers = itertools.count(2)  # of the subnet, 1 is the bridge
        self._undo = contextlib.ExitStack()
        self._started: list[Process] = []
        self.nodes: dict[str, Node] = {}
        self.gateway: Gateway | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start head and workers; returns when all are there. Whatever fails, nothing is left."""
        reason = missing()
        if reason:
            raise RuntimeError(f"no namespaced cluster here: {reason}")
        try:
            self._make_network()
            self._begin(HEAD, cpus=self._head_cpus, gpus=0, resources={})
            self._wait(lambda: HEAD in self._alive_or_none(), "the head is not up")
            for name in self._workers:
                self._begin(name, cpus=self._cpus, gpus=self._gpus, resources=self._resources)
            self._wait(lambda: set(self._workers) <= self._alive_or_none(), "not all nodes are up")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill and delete everything, last things first; an error does not keep the rest from being undone."""
        self.nodes.clear()
        self._undo.close()

    @property
    def address(self) -> str:
        """What RAY_ADDRESS is in all nodes."""
        return f"{self.nodes[HEAD].address}:{GCS_PORT}"

    @property
    def dashboard_url(self) -> str:
        """Where `ray job submit` leads."""
        return f"http://{self.nodes[HEAD].address}:{DASHBOARD_PORT}"

    @property
    def local(self) -> Path:
        """A folder that is each node's own, as a local disk is; in this machine's root namespace it is empty."""
        return self._folder / "local"

    def local_of(self, name: str) -> Path:
        """Where this machine sees a node's `local`."""
        return self.nodes[name].folder / "local"

    def logs(self, name: str) -> Path:
        """Ray's logs of a node."""
        return self.nodes[name].folder / "session_latest" / "logs"

    def add_node(
        self, name: str, *, cpus: int | None = None, gpus: int | None = None, resources: dict[str, float] | None = None
    ) -> None:
        """Start another worker, or one in place of one that was killed or cut off; returns when it is there."""
        cpus, gpus = self._cpus if cpus is None else cpus, self._gpus if gpus is None else gpus
        self._begin(name, cpus=cpus, gpus=gpus, resources=self._resources if resources is None else resources)
        self._wait(lambda: name in self._alive_or_none(), f"{name} is not up")

    def kill_node(self, name: str) -> None:
        """SIGKILL for everything on a node, as when its machine is taken away; its name is free again."""
        node = self.nodes.pop(name)
        self._remove(node)

    def cut(self, name: str) -> None:
        """Take a node's network away: packets to and from it are lost, and nobody is told."""
        _ip("link", "set", self.nodes[name].link, "nomaster")

    def heal(self, name: str) -> None:
        """Give a node its network back."""
        _ip("link", "set", self.nodes[name].link, "master", self._prefix)

    def drain(self, name: str, deadline_s: float) -> None:
        """Announce a node's end, as `ray drain-node` does on the notice that a spot machine will be taken away."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.core.generated import autoscaler_pb2

        accepted, refusal = GcsClient(address=self.address).drain_node(
            self.node_id(name),
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),  # type: ignore[attr-defined]
            "a test takes the machine away",
            int((time.time() + deadline_s) * 1000),
        )
        if not accepted:
            raise RuntimeError(f"{name} is not drained: {refusal}")

    def run(self, name: str, command: Sequence[str], **popen: Any) -> Process:
        """Start a command on a node; it leads its own process group, and `stop` kills it. `env` adds to the node's."""
        node = self.nodes[name]
        environment = {**self._node_environment(), "RAY_ADDRESS": self.address, **popen.pop("env", {})}
        # The mount is private to the namespace that `unshare` makes.
        setup = 'hostname "$0" && mount --bind "$1" "$2" && shift 2 && exec "$@"'
        # `ip netns exec` would hide /sys/fs/cgroup.
        inside = ["nsenter", f"--net=/run/netns/{node.namespace}", "unshare", "--uts", "--mount"]
        folders = [str(node.folder / "local"), str(self.local)]
        process: Process = subprocess.Popen(
            [*inside, "sh", "-c", setup, name, *folders, *command],
            **{"cwd": REPOSITORY, "start_new_session": True, **popen},
            env=environment,
        )
        self._started.append(process)
        return process

    def pids(self, name: str, title: str = "") -> list[int]:
        """The processes on a node; with a title those that have it in their command line, as `ray::` workers do."""
        found = subprocess.run(["ip", "netns", "pids", self.nodes[name].namespace], capture_output=True, text=True)
        return [pid for pid in map(int, found.stdout.split()) if title in _command_line(pid)]

    @staticmethod
    def freeze(pid: int) -> None:
        """Stop a process where it is, as one that hangs; its connections stay."""
        os.kill(pid, signal.SIGSTOP)

    @staticmethod
    def thaw(pid: int) -> None:
        """Let a frozen process go on."""
        os.kill(pid, signal.SIGCONT)

    def alive_nodes(self) -> list[str]:
        """Names of the nodes that the head believes to be alive. Not while the head is down or cut off."""
        with self._state() as state:
            return sorted(node["NodeManagerHostname"] for node in state.node_table() if node["Alive"])

    def node_id(self, name: str) -> str:
        """Ray's name of a node that is alive."""
        with self._state() as state:
            found = [node for node in state.node_table() if node["Alive"] and node["NodeManagerHostname"] == name]
        return str(found[0]["NodeID"])

    def draining(self) -> list[str]:
        """Names of the nodes whose end is announced."""
        with self._state() as state:
            going = state.get_draining_nodes()
            return sorted(node["NodeManagerHostname"] for node in state.node_table() if node["NodeID"] in going)

    def actors(self) -> list[dict[str, Any]]:
        """Ray's entries of the actors that are not dead."""
        with self._state() as state:
            return [actor for actor in state.actor_table(None).values() if actor["State"] != "DEAD"]

    def placement_groups(self) -> list[dict[str, Any]]:
        """Ray's entries of the placement groups that are not removed."""
        with self._state() as state:
            return [group for group in state.placement_group_table().values() if group["state"] != "REMOVED"]

    def free(self) -> dict[str, float]:
        """What `ray.available_resources()` returns."""
        with self._state() as state:
            return dict(state.available_resources())

    @contextlib.contextmanager
    def _state(self) -> Iterator[Any]:
        """Ray's view of the cluster from outside: neither a driver nor a second of start-up."""
        from ray._private.state import GlobalState
        from ray._raylet import GcsClientOptions  # type: ignore[attr-defined]

        state = GlobalState()
        state._initialize_global_state(
            GcsClientOptions.create(self.address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
        )
        try:
            yield state
        finally:
            state.disconnect()

    def _alive_or_none(self) -> set[str]:
        """The nodes that are alive; none before the head answers."""
        try:
            socket.create_connection((self.nodes[HEAD].address, GCS_PORT), timeout=1).close()
        except OSError:
            return set()
        return set(self.alive_nodes())

    def _make_network(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sg", dir="/tmp"))  # TMPDIR could be too long for sockets
        self._undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self.local.mkdir()
        with _one_at_a_time():
            subnet = _free_subnet()
            _ip("link", "add", self._prefix, "type", "bridge")
            self._undo.callback(_ip, "link", "del", self._prefix)
            self._subnet, self.bridge = subnet, f"{subnet}.1"
            _ip("addr", "add", f"{self.bridge}/24", "dev", self._prefix)
        _ip("link", "set", self._prefix, "up")
        self._undo.callback(self._reap)
        if self._s3:
            self.gateway = self._undo.enter_context(Gateway(self._s3.endpoint, self.bridge))
            self._environment |= self._s3.environment() | {"AWS_ENDPOINT_URL": self.gateway.endpoint}

    def _begin(self, name: str, *, cpus: int, gpus: int, resources: Mapping[str, float]) -> None:
        if len(name) > NAME_CHARACTERS or name in self.nodes:
            raise ValueError(f"{name}: a new node needs a new name of at most {NAME_CHARACTERS} characters")
        node = self._make_node(name)
        place = [f"--address={self.address}"]
        if name == HEAD:
            dashboard = [f"--include-dashboard={self._dashboard}", f"--dashboard-port={DASHBOARD_PORT}"]
            place = ["--head", f"--port={GCS_PORT}", "--dashboard-host=0.0.0.0", *dashboard]
        command = [
            str(Path(sysconfig.get_path("scripts")) / "ray"),
            "start",
            "--block",
            *place,
            f"--node-ip-address={node.address}",
            f"--num-cpus={cpus}",
            f"--num-gpus={gpus}",
            f"--resources={json.dumps(resources)}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={node.folder}",
            "--include-log-monitor=false",
            "--disable-usage-stats",
        ]
        with (node.folder / "start.log").open("wb") as log:
            node.process = self.run(
                name, command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env={"RAY_ADDRESS": ""}
            )

    def _make_node(self, name: str) -> Node:
        number = next(self._numbers)
        namespace = f"{self._prefix}-{number}"
        node = Node(
            name,
            namespace,
            link=namespace,
            address=f"{self._subnet}.{number}",
            ethernet=f"02:00:00:00:00:{number:02x}",
            folder=self._folder / f"{name}{number}",
        )
        (node.folder / "local").mkdir(parents=True)
        _ip("netns", "add", namespace)
        self._undo.callback(self._remove, node)
        _ip(
            *("link", "add", node.link, "type", "veth", "peer", "name", "eth0"),
            *("address", node.ethernet, "netns", namespace),
        )
        _ip("link", "set", node.link, "master", self._prefix, "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "addr", "add", f"{node.address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        for other in self.nodes.values():
            _know(other.namespace, node)
            _know(namespace, other)
        self.nodes[name] = node
        return node

    def _node_environment(self) -> dict[str, str]:
        paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            **HEALTH_CHECKS,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Workers that wait for work would only take memory: those of training have an environment of their own.
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
            "PYTHONPATH": os.pathsep.join(paths),
            **self._environment,
        }

    def _wait(self, ready: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while not ready():
            ended = [node for node in self.nodes.values() if node.process and node.process.poll() is not None]
            if ended or time.monotonic() > deadline:
                said = "".join((node.folder / "start.log").read_text()[-1500:] for node in ended)
                raise RuntimeError(f"{complaint}: {said or 'it takes too long'}")
            time.sleep(0.1)

    def _remove(self, node: Node) -> None:
        """Kill what runs on a node and delete its network; nothing where that was done before."""
        if not Path(f"/run/netns/{node.namespace}").exists():
            return
        deadline = time.monotonic() + GONE_WITHIN_S
        while pids := _ip("netns", "pids", node.namespace).split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{node.name} still has processes after SIGKILL: {', '.join(pids)}")
            time.sleep(0.02)
        _ip("netns", "del", node.namespace)
        # The kernel deletes a namespace's interfaces some time later; the next use of the name must not meet them.
        with contextlib.suppress(RuntimeError):
            _ip("link", "del", node.link)

    def _reap(self) -> None:
        """Wait for all processes that were started, so that none is left as a zombie."""
        for process in self._started:
            process.wait(GONE_WITHIN_S)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()
        self._started.clear()


def _know(namespace: str, other: Node) -> None:
    """Tell a node another's Ethernet address, for good.

    Else connections to a node that is cut off fail within 3 s, with `no route to host`, as they do not in a cloud.
    """
    neighbour = (other.address, "lladdr", other.ethernet, "nud", "permanent", "dev", "eth0")
    _ip("-n", namespace, "neigh", "replace", *neighbour)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _free_subnet() -> str:
    """The first three numbers of a /24 that no interface of this machine has."""
    taken = {address["local"] for link in json.loads(_ip("-j", "addr")) for address in link["addr_info"]}
    for third in range(256):
        subnet = f"10.213.{(os.getpid() + third) % 256}"
        if not any(address.startswith(f"{subnet}.") for address in taken):
            return subnet
    raise RuntimeError("all of 10.213.0.0/16 is in use")


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two test runs do not take the same subnet."""
    with (Path(tempfile.gettempdir()) / "segtrain-namespaces.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _command_line(pid: int) -> str:
    """Empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""

"""Which Ray a job joins, and who can join the one that it starts."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import ray
import yaml

from segtrain.cluster import connection as ray_connection
from segtrain.cluster.connection import connection
from segtrain.errors import StorageError, UserError
from segtrain.storage.scratch import PREFIX, locked_folder
from tests.support.places import REPOSITORY

NOBODY = 65534
ANSWER_WITHIN_S = 600.0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that `ray.init` was called with, in place of calling it."""
    addresses: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **options: addresses.append(address))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_connection, "GcsClient", lambda address: None)
    return addresses


@pytest.fixture
def address_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `ray start` writes, in a folder of the test's own."""
    path = tmp_path / "ray_current_cluster"
    monkeypatch.setattr(ray_connection, "get_ray_address_file", lambda folder: str(path))
    return path


@contextmanager
def listening() -> Iterator[str]:
    """The address of something that takes connections."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "127.0.0.1"])
def test_an_address_where_nothing_answers_is_refused(
    started: list[str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"RAY_ADDRESS: no cluster answers at {address}"), connection():
        pass


def test_the_address_for_submitting_jobs_is_not_one_to_join(
    started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(UserError, match="is for `ray job submit`"), connection():
        pass


def test_what_ray_start_left_is_joined_and_passed_over_where_it_is_dead(started: list[str], address_file: Path) -> None:
    with listening() as address:
        address_file.write_text(f"{address}\n")
        with connection():
            assert started == [address]
    address_file.write_text("127.0.0.1:1")
    with connection():
        assert started == [address, "local"]


def test_without_any_cluster_one_is_started(started: list[str], address_file: Path) -> None:
    with connection():
        assert started == ["local"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_the_address_that_another_user_wrote_into_the_shared_folder_is_not_joined(
    started: list[str], address_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with listening() as address:
        address_file.write_text(address)
        os.chown(address_file, NOBODY, NOBODY)
        with connection():
            assert started == ["local"]
    assert f"RAY_ADDRESS={address} asks for it" in caplog.text


def test_an_own_ray_gets_a_token_and_a_closed_folder_and_leaves_neither_behind(
    started: list[str], address_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def init(address: str, **options: str) -> None:
        folder = Path(options["_temp_dir"]).parent
        seen.append((folder, folder.stat().st_mode & 0o777, dict(os.environ)))

    monkeypatch.setattr(ray, "init", init)
    for variable in ("RAY_AUTH_TOKEN", "RAY_TMPDIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for _ in range(2):
        with connection():
            pass
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's")
    with connection():
        pass
    tokens = [environment["RAY_AUTH_TOKEN"] for _, _, environment in seen]
    assert len(tokens[0]) >= 32
    assert tokens[0] != tokens[1]
    assert tokens[2] == "the user's"
    for folder, mode, environment in seen:
        assert (mode, environment["RAY_AUTH_MODE"]) == (0o700, "token")
        assert not folder.exists()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_a_killed_processs_folder_goes_with_the_next_start_and_one_in_use_stays(
    started: list[str], address_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = ray_connection.OWN_PREFIX
    with locked_folder(ray_connection._folder_for_sockets(), prefix) as alive:
        killed = alive.with_name(f"{prefix}killed")
        killed.mkdir()
        with connection():
            assert not killed.exists()
            assert alive.exists()


def test_what_killed_workers_leave_in_the_temporary_folder_goes_when_ray_goes(
    started: list[str], address_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{PREFIX}model-killed"
    with connection():
        left.mkdir()
    assert not left.exists()


def test_a_temporary_folder_with_a_long_path_gives_way_to_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 10)))
    assert ray_connection._folder_for_sockets() == "/tmp"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StorageError, match="set RAY_TMPDIR to a short path"):
        ray_connection._folder_for_sockets()


POD = """
import sys
import ray
from segtrain.cluster.connection import connection

with connection():
    print(ray.get_runtime_context().gcs_address, ray._private.worker._global_node.raylet_socket_name, flush=True)
    sys.stdin.read()
"""
"""What `jobs/prepare.py` does about Ray where there are many pictures."""

STRANGER = """
import contextlib, os, socket, sys, traceback
import ray
from ray._raylet import GcsClient
from segtrain.cluster import connection as ray_connection
from segtrain.errors import UserError

address, sock, user = sys.argv[1:]
elsewhere = ray.util.get_node_ip_address(), int(address.rpartition(":")[2])

def gcs():
    GcsClient(address=address).internal_kv_keys(b"", None)

def driver():
    with ray_connection._on_loopback():  # else Ray looks for the cluster at this machine's own address
        ray.init(address, log_to_driver=False, logging_level="CRITICAL")

def unix_socket():
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(sock)

def other_address():
    socket.create_connection(elsewhere, timeout=5).close()

if int(user):
    with contextlib.suppress(Exception):
        driver()  # imports the modules that it needs, which the other user may not be able to read
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
for attempt in (gcs, driver, unix_socket, other_address):
    try:
        attempt()
    except Exception as error:
        why = "no token" if "InvalidAuthToken" in traceback.format_exc() else type(error).__name__
        print(attempt.__name__, "failed:", why, flush=True)
    else:
        print(attempt.__name__, "worked", flush=True)
print("finds", ray_connection._address(), flush=True)
os.environ["RAY_ADDRESS"] = address
try:
    with ray_connection.connection():
        print("job worked")
except UserError as error:
    print(error)
"""


def run_as(user: int, environment: dict[str, str], *arguments: str) -> list[str]:
    """What a stranger, or the user in person, prints."""
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *arguments, str(user)],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=ANSWER_WITHIN_S,
    )
    assert "finds" in done.stdout, done.stdout + done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.ray
@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_a_process_of_another_user_with_another_home_cannot_join_the_prepare_pods_ray() -> None:
    job = yaml.safe_load((REPOSITORY / "infra/kuberay/job-prepare.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    written = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    (from_secret,) = [one["valueFrom"] for one in container["env"] if one["name"] == "RAY_AUTH_TOKEN"]
    assert from_secret["secretKeyRef"] == {"name": "segtrain-ray-token", "key": "auth_token"}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    plain |= {"PYTHONPATH": str(REPOSITORY), "RAY_NUM_REDIS_GET_RETRIES": "1"}  # a refusal is not tried 20 times
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    pod = subprocess.Popen(
        [sys.executable, "-c", POD],
        env={**plain, **written, **secret, "HOME": "/dev/null"},  # a container's user may have no home
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert pod.stdout
        assert pod.stdin
        where = pod.stdout.readline().split()
        assert len(where) == 2
        home = {"HOME": "/nonexistent"}
        refused = ["gcs failed: no token", "driver failed: no token"]
        closed = ["unix_socket failed: PermissionError", "other_address failed: ConnectionRefusedError", "finds None"]
        sentence = f"the Ray cluster at {where[0]} asks for a token, and this is not it; set RAY_AUTH_MODE=token, and "
        for others in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}):
            *said, last = run_as(NOBODY, {**plain, **others, **home}, *where)
            assert said == refused + closed
            assert last.startswith(sentence)
        # The same program does get in where it may.
        assert run_as(0, {**plain, **secret, **home}, *where)[:3] == [
            "gcs worked",
            "driver worked",
            "unix_socket worked",
        ]
    finally:
        with suppress(BrokenPipeError):
            pod.communicate("", timeout=ANSWER_WITHIN_S)


ASKED_TO_END = """
import ctypes, os, signal, sys, threading, time
from segtrain import cli
from segtrain.cluster.connection import connection
handlers = set()
def watch():
    library, action, before = ctypes.CDLL(None), ctypes.create_string_buffer(256), None
    while True:
        library.sigaction(signal.SIGTERM, None, action)
        if action.raw[:8] == before:  # it lasts
            handlers.add(before)
        before = action.raw[:8]
        time.sleep(0.0005)
def ask(when):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    except KeyboardInterrupt:
        print(when)
def run():
    threading.Thread(target=watch, daemon=True).start()
    for _ in range(2):
        with connection():
            ask("Ray is there")
            time.sleep(4)
        ask("Ray is gone")
    print(len(handlers), "at any time")
    raise KeyboardInterrupt
sys.exit(cli.main(run))
"""


@pytest.mark.slow  # a Ray of its own takes 5 s
def test_sigterm_is_for_the_job_while_ray_comes_while_it_is_there_and_while_it_goes() -> None:
    """Ray would print a stack, and abort the process after 3 s, whatever it tidies up, and at its end at once."""
    command = [sys.executable, "-c", ASKED_TO_END]
    result = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_WITHIN_S)
    assert (result.returncode, result.stdout) == (143, "Ray is there\nRay is gone\n" * 2 + "1 at any time\n")
    assert result.stderr == "interrupted; the same command goes on from here\n"

"""Tells Ray that EC2 is about to take this spot machine back, so that a checkpoint is written before it goes.

    python spot_drain.py [--background] [--log FILE]

EC2 says so about two minutes ahead, in the instance metadata. This asks every five seconds and, when the notice is
there, drains the Ray node of this machine (`ray drain-node`): Ray places nothing new on it, and the run saves and goes
on without it. On a machine that is not spot, or not on EC2, it waits for ever and does no harm. It needs Python only,
and `ray` in the PATH.
"""

import argparse
import fcntl
import http.client
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

logger = logging.getLogger("spot_drain")

METADATA_URL = "http://169.254.169.254"
POLL_S = 5.0  # what EC2's documentation recommends
REQUEST_TIMEOUT_S = 2.0
TOKEN_TTL_S = 21600  # the longest that EC2 gives
WARNING_S = 120.0  # how long ahead EC2 gives notice; for a notice whose time cannot be read
MARGIN_S = 10.0  # Ray's deadline is so much before EC2's
RAY_TIMEOUT_S = 30.0


class Metadata:
    """EC2's instance metadata, version 2: each request shows a token that was asked for before."""

    def __init__(self, url: str = METADATA_URL) -> None:
        self._url = url
        self._token: str | None = None
        # A proxy from the environment must not see these requests, nor answer them.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> str | None:
        """The text there, or None where there is nothing (404). Raises OSError where the service does not answer."""
        for is_last in (False, True):
            if self._token is None:
                ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
                self._token = self._request("PUT", "/latest/api/token", ttl)
            try:
                return self._request("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
            except urllib.error.HTTPError as error:
                if error.code == http.client.NOT_FOUND:
                    return None
                if error.code != http.client.UNAUTHORIZED or is_last:
                    raise
                self._token = None  # it has expired
        raise AssertionError("unreachable")

    def _request(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(self._url + path, method=method, headers=headers)
        try:
            with self._opener.open(request, timeout=REQUEST_TIMEOUT_S) as answer:
                return str(answer.read().decode())
        except http.client.HTTPException as error:  # a broken answer; no OSError by itself
            raise OSError(f"{path}: {error!r}") from error


@dataclass(frozen=True)
class Notice:
    """What EC2 is going to do, and when: seconds since 1970."""

    action: str
    at: float


def read_notice(metadata: Metadata, now: float) -> Notice | None:
    """The notice that is there, if one is. One that cannot be read counts, with the usual two minutes from `now`."""
    text = metadata.get("spot/instance-action")
    if text is None:
        return None
    try:
        told = json.loads(text)
        at = datetime.strptime(told["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        return Notice(str(told["action"]), at.timestamp())
    except (ValueError, KeyError, TypeError):
        logger.warning("a notice that cannot be read: %r", text)
        return Notice("unknown", now + WARNING_S)


@dataclass(frozen=True)
class Raylet:
    """The Ray node of this machine: its id in hex, and the address of its cluster."""

    node_id: str
    cluster: str


def raylets(proc: Path = Path("/proc")) -> list[Raylet]:
    """The Ray nodes that run here, read from their command lines: usually one."""
    found = []
    for file in sorted(proc.glob("[0-9]*/cmdline")):
        try:
            words = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended since
        options = dict(word[2:].split("=", 1) for word in words[1:] if word.startswith("--") and "=" in word)
        if Path(words[0]).name == "raylet" and {"node_id", "gcs-address"} <= options.keys():
            found.append(Raylet(options["node_id"], options["gcs-address"]))
    return found


def drain(raylet: Raylet, message: str, left_s: int, ray: str = "ray") -> bool:
    """Whether Ray has taken note that this node goes in `left_s` seconds."""
    command = [ray, "drain-node", "--address", raylet.cluster, "--node-id", raylet.node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", message]
    command += ["--deadline-remaining-seconds", str(left_s)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=RAY_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("ray drain-node: %s", error)
        return False
    if ended.returncode:
        logger.warning("ray drain-node ended with %d: %s", ended.returncode, (ended.stderr or ended.stdout).strip())
    return ended.returncode == 0


def watch(
    metadata: Metadata, *, poll_s: float = POLL_S, find: Callable[[], list[Raylet]] = raylets, ray: str = "ray"
) -> bool:
    """Wait for the notice, then drain; whether every node here was drained before the machine's time.

    A drain that fails is tried again until then; a node that appears meanwhile is drained too.
    """
    notice: Notice | None = None
    is_away = False
    while notice is None:
        try:
            notice = read_notice(metadata, time.time())
            if is_away:
                logger.info("the instance metadata answer again")
            is_away = False
        except OSError as error:
            if not is_away:
                logger.warning("no answer from the instance metadata, asking on: %s", error)
            is_away = True
        if notice is None:
            time.sleep(poll_s)
    logger.warning("EC2 is going to %s this machine at %s", notice.action, datetime.fromtimestamp(notice.at, UTC))
    drained: set[Raylet] = set()
    while True:
        left_s = notice.at - time.time()
        here = set(find())
        for raylet in here - drained:
            # A clock that is wrong must not make Ray believe in hours, or in a time that is over.
            told_s = int(min(max(left_s - MARGIN_S, 1.0), WARNING_S - MARGIN_S))
            if drain(raylet, f"EC2 spot notice: {notice.action}", told_s, ray):
                logger.warning("node %s is drained, with %d s to go", raylet.node_id, told_s)
                drained.add(raylet)
        if here and here <= drained:
            return True
        if left_s <= 0:
            return False
        time.sleep(min(poll_s, 1.0))


def main() -> int:
    """Watch, in this process or in one that stays behind; one watches on a machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--background", action="store_true", help="leave a process behind that watches, and return")
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "spot_drain.log")
    parser.add_argument("--metadata-url", default=METADATA_URL, help=argparse.SUPPRESS)
    parser.add_argument("--proc", type=Path, default=Path("/proc"), help=argparse.SUPPRESS)
    parser.add_argument("--ray", default="ray", help=argparse.SUPPRESS)
    parser.add_argument("--poll-s", type=float, default=POLL_S, help=argparse.SUPPRESS)
    args = parser.parse_args()
    # Others may write to the folder too: a link that one of them left is not followed.
    with os.fdopen(os.open(args.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644), "a") as log:
        if args.background:
            rest = [word for word in sys.argv[1:] if word != "--background"]
            # A session of its own: the terminal that `ray up` opens hangs up on its processes when it closes.
            subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), *rest],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            return 0
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another spot_drain.py watches already and writes {args.log}")
            return 0
        logging.basicConfig(stream=log, level=logging.INFO, format="%(asctime)s %(message)s")
        is_drained = watch(
            Metadata(args.metadata_url), poll_s=args.poll_s, find=lambda: raylets(args.proc), ray=args.ray
        )
        return 0 if is_drained else 1


if __name__ == "__main__":
    sys.exit(main())

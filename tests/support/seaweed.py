"""A real S3 server for tests and benchmarks: SeaweedFS from PyPI, on free ports, with keys of its own."""

import dataclasses
import json
import os
import random
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

READY_WITHIN_S = 300.0
SEAWEED_PORTS = 5
STARTS = 3


@dataclasses.dataclass(frozen=True)
class Keys:
    """A pair of S3 keys."""

    access: str
    secret: str


@dataclasses.dataclass(frozen=True)
class S3Server:
    """A running S3 server with one bucket and two pairs of keys."""

    endpoint: str
    bucket: str = "segtrain"
    admin: Keys = Keys("testadmin", "testadminsecret")
    reader: Keys = Keys("testreader", "testreadersecret")
    process: int = 0
    """Its process id."""

    def environment(self, keys: Keys | None = None) -> dict[str, str]:
        """The AWS variables that lead to this server, with the admin's keys where no others are given."""
        keys = keys or self.admin
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": keys.access,
            "AWS_SECRET_ACCESS_KEY": keys.secret,
        }


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    """A server for the block; nothing of it is left afterwards."""
    for attempt in range(STARTS):
        folder = Path(tempfile.mkdtemp(prefix="segtrain-s3-"))
        port = _free_ports(SEAWEED_PORTS)
        server = S3Server(f"http://127.0.0.1:{port}")
        process = _start_seaweed(folder, port, server)
        try:
            try:
                _wait_until_writable(server, process, folder / "weed.log")
            except RuntimeError as error:
                if "address already in use" not in str(error) or attempt == STARTS - 1:
                    raise
                continue  # somebody took a port between the look and the server's start
            yield dataclasses.replace(server, process=process.pid)
            return
        finally:
            process.kill()  # SIGTERM takes seconds, and nothing here is worth keeping
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row that are free, as are those 10,000 above, which SeaweedFS takes for gRPC.

    All are below 32768, where Linux begins to give ports to whoever asks for any.
    """
    lowest, highest = 11000, 22000
    start = random.randrange(lowest, highest)
    for number in range(0, highest - lowest, count):
        first = lowest + (start - lowest + number) % (highest - lowest)
        try:
            for port in range(first, first + count):
                for each in (port, port + 10000):
                    with closing(socket.socket()) as probe:
                        probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        return first
    raise RuntimeError("there are no free ports for SeaweedFS")


def _start_seaweed(folder: Path, port: int, server: S3Server) -> subprocess.Popen[bytes]:
    (folder / "data").mkdir()
    identities = [
        _identity("admin", server.admin, ["Admin", "Read", "List", "Tagging", "Write"]),
        _identity("reader", server.reader, ["Read", "List"]),
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    command = [
        str(Path(sysconfig.get_path("scripts")) / "weed"),
        f"-logdir={folder}",
        "mini",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={port}",
        f"-master.port={port + 1}",
        f"-volume.port={port + 2}",
        f"-filer.port={port + 3}",
        f"-admin.port={port + 4}",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={folder / 's3.json'}",
        "-s3.autoCreateBucket=false",
        "-master.telemetry=false",
    ]
    environment = {**os.environ, "GOMEMLIMIT": "400MiB", "TMPDIR": str(folder), "HOME": str(folder)}
    with (folder / "weed.log").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _identity(name: str, keys: Keys, actions: list[str]) -> dict[str, object]:
    return {
        "name": name,
        "credentials": [{"accessKey": keys.access, "secretKey": keys.secret}],
        "actions": actions,
    }


def _wait_until_writable(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Create the bucket and put an object: the server's health page is green before either works."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.admin.access,
        aws_secret_access_key=server.admin.secret,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=30),
    )
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            if server.bucket not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=server.bucket)
            client.put_object(Bucket=server.bucket, Key="ready", Body=b"ready")
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start: {error}; {log.read_text()[-2000:]}") from error
            time.sleep(0.1)
        else:
            return

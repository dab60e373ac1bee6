"""A moto server that stands for AWS, and what cluster.yaml names made there."""

import copy
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REGION = "eu-west-1"
START_S = 300.0


@dataclass(frozen=True)
class Moto:
    """A server that runs; `environment` leads AWS's clients, Ray and Terraform to it."""

    url: str
    environment: dict[str, str] = field(default_factory=dict)

    def client(self, service: str, **keys: str) -> Any:
        """A client of its own session, with the given keys or those of the environment."""
        import boto3

        keys = keys or {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        return boto3.session.Session().client(service, endpoint_url=self.url, region_name=REGION, **keys)

    def check_keys(self) -> None:
        """From here on keys, signatures and policies count."""
        text = {"Content-Type": "text/plain"}
        told = urllib.request.Request(f"{self.url}/moto-api/reset-auth", data=b"0", headers=text, method="POST")
        urllib.request.urlopen(told, timeout=10).close()

    def edited(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration with an image, a security group and instance profiles that are there: a user's edits."""
        ec2, iam = self.client("ec2"), self.client("iam")
        image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        [vpc] = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        group = ec2.create_security_group(GroupName="segtrain-cluster", Description="-", VpcId=vpc["VpcId"])["GroupId"]
        edited = copy.deepcopy(config)
        for node in edited["available_node_types"].values():
            node["node_config"].update(ImageId=image, SecurityGroupIds=[group])
        for name in {
            node["node_config"]["IamInstanceProfile"]["Name"] for node in config["available_node_types"].values()
        }:
            iam.create_instance_profile(InstanceProfileName=name)
        return edited


@contextmanager
def serve_moto(folder: Path, **settings: str) -> Iterator[Moto]:
    """A moto server on a free port, with its log in `folder`; `settings` are environment variables of moto's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "moto.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **settings})
        try:
            deadline = time.monotonic() + START_S
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, (folder / "moto.log").read_text()
                    assert time.monotonic() < deadline, "moto did not start"
                    time.sleep(0.1)
            url = f"http://127.0.0.1:{port}"
            yield Moto(
                url,
                {
                    "AWS_ENDPOINT_URL": url,
                    "AWS_ACCESS_KEY_ID": "testing",
                    "AWS_SECRET_ACCESS_KEY": "testing",
                    "AWS_DEFAULT_REGION": REGION,
                    "AWS_EC2_METADATA_DISABLED": "true",
                    "AWS_CONFIG_FILE": os.devnull,
                    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                },
            )
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

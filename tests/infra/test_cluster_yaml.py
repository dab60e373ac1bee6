"""`cluster.yaml` as Ray and EC2 read it: their own schemas, and once brought up at a server that stands for EC2."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.aws import Moto
from tests.support.places import REPOSITORY

GPU_TYPES = ("gpu_spot", "gpu_on_demand")


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    return loaded


def commands(config: dict[str, Any], kind: str) -> str:
    return "\n".join(config[f"{kind}_start_ray_commands"])


def test_rays_own_validation_takes_it(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    merged = prepared["head_setup_commands"] + prepared["worker_setup_commands"]
    assert not any("install" in command for command in merged), "Ray's defaults install another Ray into the image"


def test_ec2_takes_every_node_config(config: dict[str, Any]) -> None:
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    shape = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node in config["available_node_types"].items():
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node["node_config"]}, shape)
        assert report.generate_report() == "", name


def test_gpu_machines_come_from_zero_and_the_head_is_never_spot_nor_takes_work(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    for name in GPU_TYPES:
        assert types[name]["min_workers"] == 0
        assert types[name]["max_workers"] > 0
    spot = {name for name, node in types.items() if "InstanceMarketOptions" in node["node_config"]}
    assert spot == {"gpu_spot"}
    assert types["head"]["resources"] == {"CPU": 0}
    # Where two are alike Ray takes the one of higher priority; spot is to be tried first.
    assert max(GPU_TYPES, key=lambda name: types[name].get("priority", 0)) == "gpu_spot"


def test_only_the_head_has_the_role_that_launches_machines(config: dict[str, Any]) -> None:
    profiles = {
        name: node["node_config"]["IamInstanceProfile"]["Name"] for name, node in config["available_node_types"].items()
    }
    head = profiles.pop(config["head_node_type"])
    assert head not in profiles.values()
    for name, node in config["available_node_types"].items():
        assert node["node_config"]["SecurityGroupIds"], f"{name}: Ray would open SSH to everybody"
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required", name


def test_disks_are_encrypted_and_images_asked_for_by_a_digest_that_the_user_fills_in(config: dict[str, Any]) -> None:
    for name, node in config["available_node_types"].items():
        disks = [mapping["Ebs"] for mapping in node["node_config"]["BlockDeviceMappings"]]
        assert all(disk["Encrypted"] is True for disk in disks), name
    for key in ("head_image", "worker_image"):
        assert config["docker"][key].endswith("@sha256:EDIT")


def test_a_cut_network_is_found_within_forty_seconds_and_every_ray_wants_the_token(config: dict[str, Any]) -> None:
    for kind in ("head", "worker"):
        start = commands(config, kind)
        words = start.replace(";", " ").split()
        settings = dict(word.split("=", 1) for word in words if word.startswith("RAY_health_check_"))
        period_ms, timeout_ms = (int(settings[f"RAY_health_check_{name}_ms"]) for name in ("period", "timeout"))
        assert int(settings["RAY_health_check_failure_threshold"]) * (period_ms + timeout_ms) <= 40_000
        assert start.index("RAY_health_check") < start.index("ray start")  # the environment of `ray start`
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["~/.ray"] == "~/.ray"


def test_the_watcher_of_spot_notices_is_brought_to_the_nodes_and_started(config: dict[str, Any]) -> None:
    [remote] = [remote for remote, local in config["file_mounts"].items() if local == "infra/node"]
    started = [word for word in commands(config, "worker").split() if word.endswith("spot_drain.py")]
    assert started == [f"{remote}/spot_drain.py"]
    assert (REPOSITORY / "infra/node/spot_drain.py").is_file()


def test_compiled_kernels_are_kept_on_the_disk_that_containers_share(config: dict[str, Any]) -> None:
    options = config["docker"]["run_options"]
    shared = [option.split(":")[-1] for option in options if option.startswith("-v ")]
    kept = next(option.partition("=")[2] for option in options if option.startswith("-e CUDA_CACHE_PATH="))
    assert Path(kept).parent.as_posix() in shared
    assert "-e CUDA_CACHE_MAXSIZE=4294967296" in options


def test_every_command_is_sound_shell(config: dict[str, Any]) -> None:
    lists = [config[key] for key in config if key.endswith("_commands")]
    for command in (command for some in lists for command in some):
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, f"{command}: {checked.stderr}"


@pytest.mark.parametrize(
    ("disks", "mounted", "expected"),
    [
        (
            "/dev/nvme0n1 Amazon Elastic Block Store\n/dev/nvme1n1 Amazon EC2 NVMe Instance Storage",
            "",
            "mount /dev/nvme1n1",
        ),
        ("/dev/nvme1n1 Amazon EC2 NVMe Instance Storage", "/opt/dlami/nvme", "mount --bind /opt/dlami/nvme"),
        ("/dev/nvme0n1 Amazon Elastic Block Store", "", None),
        ("/dev/nvme1n1 Amazon EC2 NVMe Instance Storage", "/mnt/nvme", None),
    ],
    ids=["a disk that nobody mounted", "mounted by the machine image", "no local disk", "mounted before"],
)
def test_the_local_disk_is_mounted_once_and_never_the_root_disk(
    config: dict[str, Any], tmp_path: Path, disks: str, mounted: str, expected: str | None
) -> None:
    # The command runs for real; what would touch this machine's disks is replaced by what writes down its arguments.
    called = tmp_path / "called"
    tools = {
        "sudo": f'echo "$@" >>{called}; case "$1" in blkid) exit 2;; esac',
        "mountpoint": f'[ "$2" = "{mounted}" ]',
        "lsblk": f"cat <<'END'\n{disks}\nEND",
    }
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    [command] = [each for each in config["initialization_commands"] if "/mnt/nvme" in each]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], check=True, env=environment, timeout=120)
    done = called.read_text().splitlines()
    mounts = [line for line in done if line.startswith("mount ")]
    assert mounts == ([f"{expected} /mnt/nvme"] if expected else [])
    assert ("mkfs.ext4 -q -E nodiscard /dev/nvme1n1" in done) == (expected == "mount /dev/nvme1n1")
    assert done[-1] == "chmod 1777 /mnt/nvme"


@pytest.mark.slow
def test_brought_up_at_a_stand_in_for_ec2_it_knows_the_gpus_and_launches_spot_machines(
    config: dict[str, Any], moto: Moto, tmp_path: Path
) -> None:
    made = moto.edited(config)
    (tmp_path / "config.json").write_text(json.dumps(made))
    # In a process of its own: boto3's clients and Ray keep what they have seen, and a key is written below HOME.
    script = textwrap.dedent("""
        import json
        import botocore.client
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
        from ray.autoscaler._private.commands import _bootstrap_config
        config = _bootstrap_config(json.load(open("config.json")), no_config_cache=True)

        # From here on as on the head, which has the key and the resolved configuration.
        called, call = set(), botocore.client.BaseClient._make_api_call
        def noted(client, operation, parameters):
            called.add(client.meta.service_model.service_name + ":" + operation)
            return call(client, operation, parameters)
        botocore.client.BaseClient._make_api_call = noted
        del config["head_node"]
        _bootstrap_config(config, no_config_cache=True)
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name in ("head", "gpu_spot", "gpu_on_demand"):
            provider.create_node(config["available_node_types"][name]["node_config"], {"ray-user-node-type": name}, 1)
        nodes = provider.non_terminated_nodes({})
        provider.set_node_tags(nodes[0], {"ray-node-status": "up-to-date"})
        json.dump(sorted(called), open("called.json", "w"))
        json.dump({name: node["resources"] for name, node in config["available_node_types"].items()},
                  open("resources.json", "w"))
    """)
    environment = {**moto.environment, "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    resources = json.loads((tmp_path / "resources.json").read_text())
    assert resources["head"]["CPU"] == 0
    for name in GPU_TYPES:
        assert (resources[name]["CPU"], resources[name]["GPU"]) == (8, 1)
        assert resources[name]["memory"] > 16 * 2**30
    assert "GPU" not in resources["cpu"]

    # The head's role, infra/terraform/roles.tf, allows what Ray calls there.
    called = set(json.loads((tmp_path / "called.json").read_text()))
    assert {"ec2:RunInstances", "ec2:CreateTags", "ec2:DescribeInstances"} <= called
    allowed = set(re.findall(r'"((?:ec2|iam):\w+)"', (REPOSITORY / "infra/terraform/roles.tf").read_text()))
    assert called <= allowed, f"the head may not {called - allowed}"

    ec2 = moto.client("ec2")
    reservations = ec2.describe_instances()["Reservations"]
    launched = {
        tag["Value"]: instance
        for reservation in reservations
        for instance in reservation["Instances"]
        for tag in instance["Tags"]
        if tag["Key"] == "ray-user-node-type"
    }
    assert launched.keys() == {"head", "gpu_spot", "gpu_on_demand"}
    assert {name: instance.get("InstanceLifecycle") for name, instance in launched.items()} == {
        "head": None,
        "gpu_spot": "spot",
        "gpu_on_demand": None,
    }
    profiles = {name: instance["IamInstanceProfile"]["Arn"].split("/")[-1] for name, instance in launched.items()}
    assert profiles == {"head": "segtrain-head", "gpu_spot": "segtrain-node", "gpu_on_demand": "segtrain-node"}
    names = {group["GroupName"] for instance in launched.values() for group in instance["SecurityGroups"]}
    assert names == {"segtrain-cluster"}, "Ray made a group of its own, open to everybody"

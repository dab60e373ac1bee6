"""The KubeRay files: what they must say, that they say the same, and the schemas where these are at hand."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from segtrain.config import Recipe, load_recipe
from tests.support.places import REPOSITORY

FOLDER = REPOSITORY / "infra/kuberay"
SCHEMAS = REPOSITORY.parent / "shared/schemas/kuberay"
CLUSTER, TRAIN, TUNE, PREPARE = "raycluster.yaml", "rayjob-train.yaml", "rayjob-tune.yaml", "job-prepare.yaml"
RAY_FILES = (CLUSTER, TRAIN, TUNE)
HOME = "/home/ray/segtrain"
"""Where the Dockerfiles put segtrain."""
HEALTH_CHECK = {
    "RAY_health_check_initial_delay_ms": 5000,
    "RAY_health_check_period_ms": 3000,
    "RAY_health_check_timeout_ms": 5000,
    "RAY_health_check_failure_threshold": 4,
}
CUT_NETWORK_WITHIN_S = 40
SPOT_NOTICE_S = 120
"""AWS tells a spot machine its end so long before."""
GIB = 2**30
ANSWER_WITHIN_S = 300
DRIVER = f"""
import time
import ray
from segtrain.cluster import nodes

ray.init(log_to_driver=False, logging_level="ERROR")
work = ray.remote(num_cpus=1)(type("Work", (), {{"ready": lambda self: True}})).remote()
ray.get(work.ready.remote())
print("working")
until = time.monotonic() + {ANSWER_WITHIN_S}
while not nodes.draining() and time.monotonic() < until:
    time.sleep(0.5)
print(len(nodes.draining()), "machine is about to go")
"""

Spec = dict[str, Any]


def document(file: str) -> Spec:
    """The one object in a file."""
    loaded: Spec = yaml.safe_load((FOLDER / file).read_text())
    return loaded


def cluster_of(file: str) -> Spec:
    """The specification of the Ray cluster in a file."""
    spec: Spec = document(file)["spec"]
    return spec if file == CLUSTER else spec["rayClusterSpec"]


def pods(spec: Spec) -> list[Spec]:
    """The pods' specifications, the head's first."""
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def environment(container: Spec) -> dict[str, str]:
    """The variables that are written out."""
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


def recipe_of(entrypoint: str) -> Recipe:
    """The recipe that a job's command would run."""
    words = shlex.split(entrypoint)
    at = next(number for number, word in enumerate(words) if word.endswith(".yaml"))
    settings = [word for word in words[at + 1 :] if not word.startswith("--")]
    return load_recipe(words[at].replace(HOME, str(REPOSITORY)), settings)


@pytest.mark.parametrize("file", RAY_FILES)
def test_ray_is_the_locked_version_in_every_image(file: str) -> None:
    spec = cluster_of(file)
    (ray,) = re.findall(r"^ray==(\S+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    (segtrain,) = re.findall(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert spec["rayVersion"] == ray
    images = [container["image"] for pod in pods(spec) for container in pod["containers"]]
    tags = [image.rpartition("@")[0].rpartition(":")[2] for image in images]
    assert tags == [f"{segtrain}-ray{ray}-{kind}" for kind in ("cpu", "cu125", "cu125")]
    built = "".join(path.read_text() for path in (REPOSITORY / "infra/docker").glob("*.Dockerfile"))
    assert all(f"-t REGISTRY/segtrain:{tag} " in built for tag in tags)


def test_the_three_clusters_differ_in_the_number_of_machines_alone() -> None:
    specs = [cluster_of(file) for file in RAY_FILES]
    for spec in specs:
        for group in spec["workerGroupSpecs"]:
            assert group.pop("maxReplicas") >= 1
    assert specs[0] == specs[1] == specs[2]


def test_a_cut_network_is_noticed_in_time() -> None:
    worst_ms = HEALTH_CHECK["RAY_health_check_failure_threshold"] * (
        HEALTH_CHECK["RAY_health_check_period_ms"] + HEALTH_CHECK["RAY_health_check_timeout_ms"]
    )
    assert worst_ms / 1000 <= CUT_NETWORK_WITHIN_S
    for pod in pods(cluster_of(CLUSTER)):
        found = environment(pod["containers"][0])
        assert {name: int(found[name]) for name in HEALTH_CHECK} == HEALTH_CHECK


def test_ray_asks_for_a_token_and_no_secret_is_written_down() -> None:
    assert cluster_of(CLUSTER)["authOptions"] == {"mode": "token", "secretName": "segtrain-ray-token"}
    documents = [document(file) for file in (*RAY_FILES, PREPARE)]
    variables = [found for each in documents for found in _find(each, "env") for found in found]
    secret = [one for one in variables if re.search(r"KEY|SECRET|TOKEN|PASSWORD", one["name"])]
    assert len(secret) >= 3
    for variable in secret:
        assert list(variable["valueFrom"]) == ["secretKeyRef"], variable
    told = (REPOSITORY / "docs/kubernetes.md").read_text()
    for name in {one["valueFrom"]["secretKeyRef"]["name"] for one in secret} | {"segtrain-ray-token"}:
        assert f"create secret generic {name} " in told, f"docs/kubernetes.md does not make the secret {name}"


def test_workers_come_from_zero_on_spot_first_and_the_head_does_no_work() -> None:
    spec = cluster_of(CLUSTER)
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    spot, on_demand = spec["workerGroupSpecs"]
    assert spot["priority"] > on_demand["priority"]
    for group in (spot, on_demand):
        assert group["minReplicas"] == group["replicas"] == 0
        pod = group["template"]["spec"]
        limits = pod["containers"][0]["resources"]["limits"]
        assert limits == pod["containers"][0]["resources"]["requests"]
        assert int(limits["nvidia.com/gpu"]) == 1
        assert "nvidia.com/gpu" in {toleration["key"] for toleration in pod["tolerations"]}
    assert "spot" in {toleration["key"] for toleration in spot["template"]["spec"]["tolerations"]}
    (head, spot_pod, on_demand_pod) = (pod["nodeSelector"] for pod in pods(spec))
    assert head == on_demand_pod != spot_pod


def test_a_pod_has_left_before_its_spot_machine_goes() -> None:
    for pod in pods(cluster_of(CLUSTER)):
        (container,) = pod["containers"]
        waits_s = float(environment(container)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        hook_s = 0.0
        if "lifecycle" in container:
            command = container["lifecycle"]["preStop"]["exec"]["command"]
            hook_s = float(command[command.index("timeout") + 1])
            announced_s = float(command[-1].removeprefix("--deadline-remaining-seconds="))
            assert announced_s <= waits_s
        assert hook_s + waits_s <= pod["terminationGracePeriodSeconds"] <= SPOT_NOTICE_S


@pytest.mark.parametrize("file", [TRAIN, TUNE])
def test_a_job_names_what_is_in_the_image_and_settings_that_exist(file: str) -> None:
    spec = document(file)["spec"]
    recipe = recipe_of(spec["entrypoint"])
    for word in shlex.split(spec["entrypoint"]):
        if word.startswith("/home"):
            assert (REPOSITORY / Path(word).relative_to(HOME)).is_file(), word
    dockerfile = (REPOSITORY / "infra/docker/gpu.Dockerfile").read_text()
    assert f"\nWORKDIR {HOME}\n" in dockerfile
    assert "jobs jobs\n" in dockerfile
    worker = pods(spec["rayClusterSpec"])[1]
    container = worker["containers"][0]
    limits, mounts = container["resources"]["limits"], container["volumeMounts"]
    assert recipe.cluster.gpus_per_worker == int(limits["nvidia.com/gpu"])
    assert recipe.cluster.cpus_per_worker <= int(limits["cpu"])
    most = sum(group["maxReplicas"] for group in spec["rayClusterSpec"]["workerGroupSpecs"])
    assert recipe.cluster.max_workers <= most
    (mount,) = [each for each in mounts if (recipe.data.node_cache or "").startswith(each["mountPath"] + "/")]
    (volume,) = [each for each in worker["volumes"] if each["name"] == mount["name"]]
    variables = environment(container)
    assert variables["CUDA_CACHE_PATH"].startswith(mount["mountPath"] + "/")
    compiled_bytes = int(variables["CUDA_CACHE_MAXSIZE"])
    assert compiled_bytes == 4 * GIB
    volume_bytes = int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * GIB
    assert recipe.data.node_cache_bytes + compiled_bytes < volume_bytes


@pytest.mark.parametrize("file", [TRAIN, TUNE])
def test_a_job_is_run_again_with_a_lost_head_has_time_to_save_and_ends_its_cluster(file: str) -> None:
    spec = document(file)["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["shutdownAfterJobFinishes"] is True
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}


def test_the_sweeps_command_survives_both_shells_and_goes_on_or_begins(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    # KubeRay pastes the entrypoint into a shell's command; `ray job submit` quotes what it gets for another shell.
    entrypoint = document(TUNE)["spec"]["entrypoint"]
    paste = f"python3 -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' {entrypoint}"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    submitted = subprocess.run(["bash", "-c", paste], capture_output=True, text=True, check=True, env=environment)
    done = subprocess.run(["sh", "-c", submitted.stdout], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == shlex.split(entrypoint)[1:]
    assert "--resume=auto" in done.stdout


def test_only_the_heads_account_may_change_the_cluster_and_only_rays_pods_reach_its_workers() -> None:
    for file in RAY_FILES:
        head, *workers = pods(cluster_of(file))
        assert head["serviceAccountName"] == "segtrain-head"
        assert all(pod["serviceAccountName"] == "segtrain" for pod in workers)
        assert all(pod["automountServiceAccountToken"] is False for pod in workers)
    policies = list(yaml.safe_load_all((FOLDER / "networkpolicy.yaml").read_text()))
    everywhere = next(policy["spec"] for policy in policies if policy["metadata"]["name"] == "segtrain-ray")
    rays = {"matchExpressions": [{"key": "ray.io/cluster", "operator": "Exists"}]}
    assert everywhere == {
        "podSelector": rays,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": rays}]}],
    }


def test_every_image_is_asked_for_by_a_digest_that_the_user_fills_in() -> None:
    for file in (*RAY_FILES, PREPARE):
        text = (FOLDER / file).read_text()
        lines = [line.strip() for line in text.splitlines()]
        for number, line in enumerate(lines):
            if line.startswith("image:"):
                assert line.endswith("@sha256:EDIT")  # no digest, so the kubelet refuses a file that was not edited
                assert "EDIT" in lines[number - 1]


def test_the_guides_loop_fills_in_every_digest(tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs/kubernetes.md").read_text()
    start = guide.index("export IMAGE=REGISTRY")
    shutil.copytree(FOLDER, tmp_path / "infra/kuberay")
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\ncase "$1" in buildx) for last; do :; done; echo "sha256:$last" | tr / -;; esac\n')
    docker.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    commands = guide[start : guide.index("# 5.", start)].replace("REGISTRY", "example.org/mine")
    subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, check=True)
    for file in (*RAY_FILES, PREPARE):
        loaded = yaml.safe_load((tmp_path / "infra/kuberay" / file).read_text())
        for image in _find(loaded, "image"):
            name, _, digest = image.partition("@sha256:")
            assert name.startswith("example.org/mine/segtrain:")
            assert digest == name.replace("/", "-")


def test_pods_have_the_usual_hardening() -> None:
    templates = [pod for file in RAY_FILES for pod in pods(cluster_of(file))]
    for pod in [*templates, document(PREPARE)["spec"]["template"]["spec"]]:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    contexts = [container["securityContext"] for pod in templates for container in pod["containers"]]
    contexts += [cluster_of(file)["autoscalerOptions"]["securityContext"] for file in RAY_FILES]
    for context in contexts:
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_the_prepare_pod_is_reached_by_nobody_and_writes_to_its_volumes_alone() -> None:
    template = document(PREPARE)["spec"]["template"]
    policies = list(yaml.safe_load_all((FOLDER / "networkpolicy.yaml").read_text()))
    (policy,) = [each["spec"] for each in policies if each["metadata"]["name"] == "segtrain-prepare"]
    assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert (policy["policyTypes"], policy["ingress"]) == (["Ingress"], [])
    (container,) = template["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    folders = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/tmp", "/dev/shm"} <= folders
    assert Path(environment(container)["KAGGLE_CONFIG_DIR"]).parent == Path("/tmp")


def test_ray_is_nowhere_without_a_token() -> None:
    files = [*FOLDER.iterdir(), REPOSITORY / "cluster.yaml", *(REPOSITORY / "docs").glob("*.md")]
    assert [path.name for path in files if re.search("RAY_AUTH_MODE.{0,12}disabled", path.read_text())] == []


def test_preparing_runs_the_image_for_cpus_where_its_volumes_are() -> None:
    pod = document(PREPARE)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == pods(cluster_of(CLUSTER))[0]["containers"][0]["image"]
    assert (REPOSITORY / container["command"][1]).is_file()
    _, kind, dest, *settings = container["command"][1:]
    recipe = load_recipe(None, [f"source.kind={kind}", *settings])
    assert recipe.source.path in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert f"data.root={dest}" in document(TRAIN)["spec"]["entrypoint"].split()


@pytest.mark.parametrize(("file", "schema"), [(CLUSTER, "rayclusters"), (TRAIN, "rayjobs"), (TUNE, "rayjobs")])
def test_kuberays_schema_allows_it(file: str, schema: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    path = SCHEMAS / f"{schema}.v1.schema.json"
    if not path.is_file():
        pytest.skip(f"KubeRay's schemas are not in {SCHEMAS.relative_to(REPOSITORY.parent)} beside the repository")
    checker = jsonschema.Draft202012Validator(_strict(json.loads(path.read_text())))
    wrong = [f"{error.json_path}: {error.message[:200]}" for error in checker.iter_errors(document(file))]
    assert not wrong
    misspelled = document(file)
    spec = misspelled["spec"] if file == CLUSTER else misspelled["spec"]["rayClusterSpec"]
    spec["workerGroupSpecs"][0]["maxReplica"] = spec["workerGroupSpecs"][0].pop("maxReplicas")
    assert not checker.is_valid(misspelled)


@pytest.mark.slow
@pytest.mark.ray
def test_the_hook_announces_the_end_to_segtrain_and_the_signal_then_ends_a_machine_without_work(tmp_path: Path) -> None:
    ray = shutil.which("ray", path=str(Path(sys.executable).parent))
    assert ray
    (container,) = pods(cluster_of(CLUSTER))[1]["containers"]
    # A socket's path has 107 characters at most, too few for one in `tmp_path`.
    sessions, port, log = tempfile.mkdtemp(prefix="segtrain-"), _free_port(), tmp_path / "log"
    variables = {
        **os.environ,
        **environment(container),
        "PATH": f"{Path(ray).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": f"127.0.0.1:{port}",  # KubeRay sets it in every pod
    }
    start = (
        f"ray start --head --block --port {port} --num-cpus 1 --num-gpus 0 --object-store-memory 100000000 "
        f"--include-dashboard false --ray-client-server-port {_free_port()} --temp-dir {sessions}"
    )
    with log.open("w") as output:
        # As KubeRay starts it.
        command = ["/bin/bash", "-c", "--", f"ulimit -n 4096; {start}"]
        node = subprocess.Popen(command, env=variables, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait_for("This command will now block", log, node)
        driver = subprocess.Popen(
            [sys.executable, "-u", "-c", DRIVER],
            env=variables,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert driver.stdout
        assert driver.stdout.readline() == "working\n"
        hook = container["lifecycle"]["preStop"]["exec"]["command"]
        done = subprocess.run(hook, env=variables, capture_output=True, text=True, timeout=ANSWER_WITHIN_S)
        assert done.returncode == 0, done.stderr
        assert driver.stdout.readline() == "1 machine is about to go\n"
        driver.communicate(timeout=ANSWER_WITHIN_S)
        # No work is left, so Ray ends at once and not after 100 s.
        node.send_signal(signal.SIGTERM)
        node.wait(timeout=40)
        assert "received SIGTERM. Draining for up to 100.0 seconds" in log.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()
        shutil.rmtree(sessions, ignore_errors=True)


def _wait_for(words: str, log: Path, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + ANSWER_WITHIN_S
    while words not in (said := log.read_text()):
        assert process.poll() is None, said[-3000:]
        assert time.monotonic() < until, said[-3000:]
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _find(tree: Any, key: str) -> Iterator[Any]:
    """Every value under `key`, however deep."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            if name == key:
                yield value
            else:
                yield from _find(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from _find(value, key)


def _strict(schema: Any) -> Any:
    """A structural schema of Kubernetes as one of JSON Schema that allows no unknown field."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    # Names of fields are kept whatever they are; keywords are translated.
    plain = {
        key: {name: _strict(each) for name, each in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key != "nullable"
    }
    if schema.get("x-kubernetes-int-or-string"):
        plain["type"] = ["integer", "string"]
    if "properties" in plain and not schema.get("x-kubernetes-preserve-unknown-fields"):
        plain.setdefault("additionalProperties", False)
    if schema.get("nullable"):
        kinds = plain.get("type", [])
        plain["type"] = [*([kinds] if isinstance(kinds, str) else kinds), "null"]
    return plain

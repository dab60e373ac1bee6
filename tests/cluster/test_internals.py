"""What segtrain uses of Ray that Ray does not promise: each name is there, and taken as segtrain calls it."""

import ast
import ctypes
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

SEGTRAIN = Path(__file__).parents[2] / "segtrain"
CONFINED_TO = {"cluster/ray_internals.py", "cluster/train_internals.py"}

NAMES = [
    ("ray._common.utils:get_ray_address_file", "where `ray start` writes its address", [None]),
    ("ray._private.ray_constants:ENABLE_RAY_CLUSTER", "to let an own Ray listen on loopback alone", None),
    ("ray._private.ray_constants:DEBUG_AUTOSCALING_STATUS", "to see whether an autoscaler is at work", None),
    ("ray._private.ray_constants:RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "to measure what a job uploads", None),
    ("ray._private.ray_constants:get_runtime_env_default_excludes", "to measure what a job uploads", []),
    ("ray._private.runtime_env.packaging:_dir_travel", "to measure what a job uploads", [1, 2, 3, True, 5]),
    ("ray._private.runtime_env.packaging:_get_excludes", "to measure what a job uploads", [1, 2]),
    (
        "ray._private.authentication.authentication_token_setup:ensure_token_if_auth_enabled",
        "to refuse a cluster without a token before Ray ends the process",
        {"create_token_if_missing": False},
    ),
    (
        "ray._private.authentication.authentication_token_setup:maybe_enable_token_auth_if_token_available",
        "to join a cluster found on this machine with the user's token",
        {"warn_if_disabled": False},
    ),
    ("ray._private.state:state.available_resources_per_node", "to see what is free on each node", []),
    ("ray._private.state:state.get_draining_nodes", "to see which nodes are about to go", []),
    ("ray._private.state:state.get_max_resources_from_cluster_config", "to see the autoscaler's limits", []),
    ("ray._private.worker:global_worker", "to ask the cluster about its autoscaler", None),
    ("ray._private.worker:get_dashboard_url", "to see whether Ray can remove placement groups", []),
    ("ray._raylet:GcsClient", "to see whether a cluster takes the token", None),
    ("ray._raylet:Config.initialize", "to read RAY_AUTH_MODE again", None),
    ("ray._raylet:AuthenticationTokenLoader.instance", "to read RAY_AUTH_TOKEN again", None),
    ("ray._raylet:AuthenticationTokenLoader.reset_cache", "to read RAY_AUTH_TOKEN again", None),
    ("ray._raylet:__file__", "to call the functions of Ray's library that take SIGTERM", None),
    ("ray.autoscaler.v2.utils:is_autoscaler_v2", "to tell autoscalers apart", {"fetch_from_server": True}),
    ("ray.train.v2._internal.exceptions:InsufficientClusterResourcesError", "to tell what ended a run", None),
    ("ray.train.v2._internal.exceptions:WorkerGroupStartupTimeoutError", "to tell what ended a run", None),
    ("ray.train.v2._internal.exceptions:WorkerHealthCheckFailedError", "to tell what ended a run", None),
    ("ray.train.v2._internal.exceptions:WorkerHealthCheckTimeoutError", "to tell frozen from lost workers", None),
    (
        "ray.train.v2._internal.execution.callback:WorkerGroupCallback.after_worker_group_start",
        "to hand a trial's placement group to the sweep",
        ["self", "group"],
    ),
    (
        "ray.train.v2._internal.execution.worker_group.worker_group:WorkerGroup.get_worker_group_state",
        "to hand a trial's placement group to the sweep",
        ["self"],
    ),
    (
        "ray.train.v2._internal.execution.worker_group.placement_group_handle:PlacementGroupHandle.placement_group",
        "to hand a trial's placement group to the sweep",
        None,
    ),
    (
        "ray.train.v2._internal.callbacks.placement_group_callback:PlacementGroupCleanerCallback",
        "to leave it out where the sweep removes placement groups",
        None,
    ),
    (
        "ray.train.v2._internal.execution.controller.controller:TrainController.abort",
        "to end the workers on a second Ctrl-C",
        ["self"],
    ),
    (
        "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._create_default_callbacks",
        "which segtrain overrides to leave out Ray's cleaner of placement groups",
        ["self"],
    ),
    (
        "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._register_sigint_handler",
        "which segtrain overrides to handle signals itself",
        ["self", "controller"],
    ),
]
"""Module and name, what segtrain uses it for, and the arguments that it gives; None where only the name counts."""


@pytest.mark.parametrize(("name", "use", "arguments"), NAMES, ids=[name for name, _, _ in NAMES])
def test_ray_still_has_the_private_name(name: str, use: str, arguments: list[Any] | dict[str, Any] | None) -> None:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        pytest.fail(f"this version of Ray has no {name}, which segtrain uses {use}; see {sorted(CONFINED_TO)}")
    if arguments is None:
        return
    positional = arguments if isinstance(arguments, list) else []
    named = arguments if isinstance(arguments, dict) else {}
    try:
        inspect.signature(found).bind(*positional, **named)
    except TypeError as error:
        pytest.fail(f"Ray's {name} takes other arguments now ({error}); segtrain uses it {use}")


def test_the_walk_over_an_upload_takes_its_arguments_by_the_names_that_segtrain_gives() -> None:
    from segtrain.cluster.ray_internals import walk_upload

    names = set(inspect.signature(walk_upload).parameters)
    assert {"include_gitignore", "logger"} <= names, "Ray's _dir_travel has other arguments; see launch/upload_size.py"


def test_rays_library_still_has_the_functions_that_take_sigterm_and_give_it_back() -> None:
    from segtrain.cluster.ray_internals import GIVES_SIGTERM_BACK, LIBRARY, TAKES_SIGTERM

    library = ctypes.PyDLL(LIBRARY)
    gone = [name for name in (TAKES_SIGTERM, GIVES_SIGTERM_BACK) if not hasattr(library, name)]
    assert not gone, f"Ray's library has no {gone}: SIGTERM while Ray starts or ends would abort a job"


def test_ray_trains_wrapper_still_holds_the_workers_own_exception() -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

    from segtrain.cluster.train_internals import BASE_EXCEPTION

    error = ValueError("a worker's own")
    held = getattr(UserExceptionWithTraceback(error, "trace"), BASE_EXCEPTION, None)
    assert held is error, f"Ray Train's wrapper has no {BASE_EXCEPTION}: a worker's error would not be told"
    health = getattr(WorkerHealthCheckFailedError("lost", error), "health_check_failure", None)
    assert health is error, "Ray Train's WorkerHealthCheckFailedError has no health_check_failure"


def test_the_class_left_out_by_its_name_is_rays_cleaner() -> None:
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    from segtrain.cluster.train_internals import GROUP_CLEANER

    assert PlacementGroupCleanerCallback.__name__ == GROUP_CLEANER


def test_ray_still_gives_a_group_its_placement_group_handle() -> None:
    from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState

    held = WorkerGroupState.__dataclass_fields__
    assert "placement_group_handle" in held, "Ray Train's WorkerGroupState has no placement_group_handle"


@pytest.mark.ray
def test_a_process_that_has_joined_ray_can_ask_the_cluster_about_its_autoscaler(ray_session: str) -> None:
    from segtrain.cluster.ray_internals import global_worker

    gcs = getattr(global_worker, "gcs_client", None)
    assert callable(getattr(gcs, "internal_kv_get", None)), "Ray's worker has no gcs_client; see cluster/nodes.py"


@pytest.mark.parametrize(
    "variable",
    [
        "HEALTH_CHECK_INTERVAL_S_ENV_VAR=RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
        "WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR=RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S",
        "WORKER_GROUP_START_TIMEOUT_S_ENV_VAR=RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S",
        "ENABLE_PREEMPTION_WATCHER_ENV_VAR=RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
        "METRICS_ENABLED_ENV_VAR=RAY_TRAIN_METRICS_ENABLED",
    ],
)
def test_ray_train_still_reads_the_variable(variable: str) -> None:
    from ray.train.v2._internal import constants

    constant, _, name = variable.partition("=")
    assert getattr(constants, constant, None) == name, f"Ray Train does not read {name}; see launch/worker_group.py"


def test_only_two_files_know_private_parts_of_ray() -> None:
    files = {file.relative_to(SEGTRAIN).as_posix(): file for file in SEGTRAIN.rglob("*.py")}
    knowing = {name for name, file in files.items() if _private_names(ast.parse(file.read_text()))}
    assert knowing == CONFINED_TO


def test_each_private_name_that_is_imported_has_a_test() -> None:
    for file in sorted(CONFINED_TO):
        for name in _private_names(ast.parse((SEGTRAIN / file).read_text())):
            module, _, last = name.rpartition(".")
            known = any(one.startswith((f"{module}:{last}", f"{name}:")) for one, _, _ in NAMES)
            assert known, f"{file} imports {name}; add it to NAMES with what it is used for"


@pytest.mark.parametrize(
    "line",
    ["import ray._private.state", "from ray import _raylet", "from ray._common import utils", "x = ray._private.state"],
)
def test_a_private_part_is_seen_however_it_is_reached(line: str) -> None:
    assert _private_names(ast.parse(line))
    assert not _private_names(ast.parse("import ray\nfrom ray.train.v2.api.config import RunConfig\nself._private = 1"))


def _private_names(tree: ast.AST) -> list[str]:
    """Dotted names inside Ray that a module imports or reaches, and that have a part which begins with `_`."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
    return [name for name in found if name.startswith("ray.") and "._" in name]

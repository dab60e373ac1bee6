"""What all tests share: one S3 server, one embedded Ray, and an environment in which nothing of the user's matters."""

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.data_sets import make_data_set, make_row, tiny  # noqa: F401  these are fixtures
from tests.support.fault_proxy import FaultProxy
from tests.support.labelled import labelled  # noqa: F401
from tests.support.places import REPOSITORY
from tests.support.seaweed import S3Server, serve_s3
from tests.support.small_sources import data_root  # noqa: F401

# Set before any test module imports TensorFlow, Keras or Ray, and inherited by Ray's workers and by jobs under test.
os.environ.update(
    TF_CPP_MIN_LOG_LEVEL="3",
    KERAS_HOME=str(Path(tempfile.gettempdir()) / "segtrain-tests-keras"),  # else ~/.keras is read and written
    RAY_AUTH_MODE="disabled",  # else ray.init writes ~/.ray/auth_token
    RAY_USAGE_STATS_ENABLED="0",
    AWS_CONFIG_FILE=os.devnull,
    AWS_SHARED_CREDENTIALS_FILE=os.devnull,
    AWS_EC2_METADATA_DISABLED="true",
)
for variable in ("RAY_ADDRESS", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
    os.environ.pop(variable, None)


# A shell starts what runs in its background without SIGINT, and nohup without SIGHUP. The jobs under test would inherit
# that and not hear either.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


# How long an example or its drawing takes says nothing on a machine that others use too.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One SeaweedFS for the session; its environment is not set, `s3_root` does that."""
    with serve_s3() as server:
        yield server


@pytest.fixture
def s3_root(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh `s3://` folder, with the admin's keys in the environment."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def fault_proxy(s3_server: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the server, to which the environment leads; faultless until the test injects something."""
    with FaultProxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def s3_read_only(s3_server: S3Server) -> dict[str, str]:
    """The AWS variables of a key that may read and list but not write."""
    return s3_server.environment(s3_server.reader)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[str]:
    """One embedded Ray with 4 CPUs for all tests marked `ray`; its address, for jobs that should join it."""
    import ray

    folder = tempfile.mkdtemp(prefix="sr")  # a socket's path has at most 107 bytes, so not below tmp_path
    context = ray.init(
        num_cpus=4,
        num_gpus=0,
        object_store_memory=256 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=folder,
        runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}},  # workers unpickle functions of test modules
    )
    try:
        yield context.address_info["address"]  # type: ignore[attr-defined]
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)

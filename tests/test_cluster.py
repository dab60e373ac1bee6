"""Which Ray a job joins."""

import pytest

from segtrain import cluster
from segtrain.errors import UserError


@pytest.fixture(autouse=True)
def no_ray_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The addresses that `ray.init` was called with, in place of calling it."""
    addresses: list[str | None] = []
    monkeypatch.setattr(cluster.ray, "init", lambda address, **options: addresses.append(address))
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    return addresses


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "127.0.0.1"])
def test_an_address_where_nothing_answers_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"RAY_ADDRESS: no cluster answers at {address}"), cluster.connection():
        pass


def test_the_address_for_submitting_jobs_is_not_one_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(UserError, match="is for `ray job submit`"), cluster.connection():
        pass


def test_an_address_left_behind_by_a_dead_cluster_is_passed_over(
    started: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "read_ray_address", lambda folder: "127.0.0.1:1")
    with cluster.connection():
        assert started == ["local"]


def test_without_any_cluster_one_is_started(started: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "read_ray_address", lambda folder: None)
    with cluster.connection():
        assert started == ["local"]


READ_ONLY = b'{"autoscaler_report": {"node_type_mapping": {"ffff00": "node_ffff00"}, "legacy": true}}'
AT_WORK = b'{"autoscaler_report": {"node_type_mapping": {"10.0.0.4": "head"}, "legacy": true}}'


@pytest.mark.parametrize(
    ("status", "is_one"),
    [(READ_ONLY, False), (AT_WORK, True), (b'{"autoscaler_report": null}', False), (b"half a", False)],
)
def test_an_autoscaler_that_can_start_nodes_is_told_from_one_that_watches(status: bytes, is_one: bool) -> None:
    assert cluster.autoscales(status) is is_one


def test_the_environment_is_as_before_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGTRAIN_SET", "by the user")
    with cluster.environment(SEGTRAIN_SET="ours", SEGTRAIN_NEW="ours"):
        assert cluster.os.environ["SEGTRAIN_SET"] == "by the user"
        assert cluster.os.environ["SEGTRAIN_NEW"] == "ours"
    assert "SEGTRAIN_NEW" not in cluster.os.environ

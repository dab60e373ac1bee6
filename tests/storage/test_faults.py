"""Storage behind a network that fails in every way the fault proxy knows: right bytes, or a plain error in time."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from segtrain.config import StorageConfig
from segtrain.errors import ConflictError, StorageError
from segtrain.storage import s3_files as files
from segtrain.storage.files import Storage, join
from tests.support.fault_proxy import KINDS, Fault, FaultProxy
from tests.support.seaweed import S3Server

PATIENT = StorageConfig(timeout_s=30.0, deadline_s=120.0)
STALLING = StorageConfig(timeout_s=2.0, deadline_s=120.0)
"""For a fault that only a timeout ends."""
DATA = os.urandom(300_000)
OFFSET, LENGTH = 1_000, 200_000
WHOLE = 10**9
"""More bytes than any body has: the fault strikes when the server has carried out the request."""

READS: dict[str, tuple[Callable[[Storage, str], object], object]] = {
    "whole": (lambda storage, url: storage.read_bytes(url), DATA),
    "range": (lambda storage, url: storage.read_range(url, OFFSET, LENGTH), DATA[OFFSET:][:LENGTH]),
}


@pytest.fixture(scope="module")
def direct(s3_server: S3Server) -> Storage:
    """The same objects past the proxy; it connects when it is first used, with the keys that `s3_root` sets."""
    return Storage(StorageConfig(endpoint_url=s3_server.endpoint))


@pytest.fixture
def url(s3_root: str, direct: Storage) -> str:
    """A stored object."""
    url = join(s3_root, "object")
    direct.write_bytes(url, DATA)
    return url


@pytest.mark.parametrize("kind", KINDS)
def test_reads_get_over_a_fault_that_comes_once_or_several_times(kind: str, url: str, fault_proxy: FaultProxy) -> None:
    storage = Storage(STALLING if kind == "stall" else PATIENT)
    for times in (1,) if kind == "stall" else (1, 3):
        for name, (read, expected) in READS.items():
            if (kind, name) == ("flip", "range"):
                continue  # see the test of flipped bits in ranges
            fault_proxy.clear()
            fault_proxy.inject(Fault(kind, times=times, delay_s=0.1))
            before = storage.retries
            assert read(storage, url) == expected
            if kind == "delay":
                assert storage.retries == before
            elif (
                kind == "reset"
            ):  # both clients themselves repeat a request over a connection that they had used before
                assert storage.retries - before <= times
            else:
                assert storage.retries - before == fault_proxy.injected[kind] == times


def test_a_body_that_stalls_in_the_middle_ends_by_the_timeout(url: str, fault_proxy: FaultProxy) -> None:
    storage = Storage(STALLING)
    storage.read_range(url, 0, 1)
    fault_proxy.inject(Fault("stall", times=2, after_bytes=OFFSET, match="object"))
    with ThreadPoolExecutor() as pool:
        reads = {name: pool.submit(method, storage, url) for name, (method, _) in READS.items()}
    assert all(read.result() == READS[name][1] for name, read in reads.items())
    assert storage.retries == 2


def test_a_flipped_bit_is_noticed_in_a_whole_object_but_not_in_a_range(url: str, fault_proxy: FaultProxy) -> None:
    """Why the reader of row groups compares every range with the manifest: nobody else can."""
    storage = Storage(PATIENT)
    fault_proxy.inject(Fault("flip", times=2))
    assert storage.read_bytes(url) == DATA
    assert storage.retries == 2
    fault_proxy.inject(Fault("flip", after_bytes=0))
    assert storage.read_range(url, 0, 3) == bytes([DATA[0] ^ 1]) + DATA[1:3]
    assert storage.retries == 2


def test_a_fault_without_end_is_an_error_that_names_the_url_in_time(
    s3_root: str, direct: Storage, fault_proxy: FaultProxy
) -> None:
    """All kinds and methods at once, to wait for the deadline only once."""
    storage = Storage(StorageConfig(timeout_s=1.0, deadline_s=2.0))
    actions: dict[str, Callable[[], object]] = {}
    for kind in (kind for kind in KINDS if kind != "delay"):
        url = join(s3_root, kind)
        direct.write_bytes(url, DATA)
        fault_proxy.inject(Fault(kind, times=None, match=kind))
        fault_proxy.inject(Fault(kind, method="PUT", times=None, match=kind))
        actions[url] = partial(storage.read_bytes, url)
        actions[f"{url}/range"] = partial(storage.read_range, url, OFFSET, LENGTH)
        actions[f"{url}/write"] = partial(storage.write_bytes, url, b"new")
        actions[f"{url}/new"] = partial(storage.write_if_version, f"{url}/new", b"new", None)
    del actions[join(s3_root, "flip", "range")]
    with ThreadPoolExecutor(len(actions)) as pool:  # without a deadline it never ends
        errors = {url: pool.submit(action).exception for url, action in actions.items()}
    for url, error in errors.items():
        assert isinstance(error(), StorageError), url
        assert str(error()).startswith(url.removesuffix("/range").removesuffix("/write") + ": ")
        assert str(error()).endswith("; tried for 2 s")
    assert all(direct.read_bytes(join(s3_root, kind)) == DATA for kind in KINDS if kind != "delay")
    assert not direct.exists(join(s3_root, "reset", "new"))


@pytest.mark.parametrize("kind", KINDS)
def test_writes_get_over_faults_and_are_whole(kind: str, url: str, direct: Storage, fault_proxy: FaultProxy) -> None:
    storage = Storage(STALLING if kind == "stall" else PATIENT)
    for after_bytes in (None, WHOLE):
        for times in (1,) if kind == "stall" else (1, 2):
            new = os.urandom(200_000)
            fault_proxy.clear()
            fault_proxy.inject(Fault(kind, method="PUT", times=times, after_bytes=after_bytes, delay_s=0.1))
            before = storage.retries
            storage.write_bytes(url, new)
            assert direct.read_bytes(url) == new
            assert fault_proxy.injected[kind] == (1 if kind == "delay" else times)
            assert storage.retries - before <= (0 if kind == "delay" else times)


@pytest.mark.parametrize("kind", ["reset", "truncate_fin", "stall"])
def test_a_conditional_write_whose_answer_was_lost_is_no_conflict(
    kind: str, s3_root: str, direct: Storage, fault_proxy: FaultProxy
) -> None:
    storage = Storage(STALLING if kind == "stall" else PATIENT)
    url = join(s3_root, "manifest")
    fault_proxy.inject(Fault(kind, method="PUT", after_bytes=WHOLE))
    storage.write_if_version(url, b"first", None)
    data, version = storage.read_versioned(url)
    assert data == b"first"
    fault_proxy.inject(Fault(kind, method="PUT", after_bytes=WHOLE))
    storage.write_if_version(url, b"second", version)
    assert direct.read_bytes(url) == b"second"
    assert fault_proxy.injected[kind] == 2


def test_a_conflict_is_seen_through_faults_even_where_the_bytes_are_the_same(
    s3_root: str, direct: Storage, fault_proxy: FaultProxy
) -> None:
    url = join(s3_root, "manifest")
    direct.write_if_version(url, b"same", None)
    fault_proxy.inject(Fault("reset", method="PUT", times=2, after_bytes=WHOLE))
    with pytest.raises(ConflictError, match=r"manifest was written by somebody else"):
        Storage(PATIENT).write_if_version(url, b"same", None)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is uploaded in three parts."""
    monkeypatch.setattr(files, "PART_BYTES", 5 * 2**20)  # the least that S3 takes
    path = tmp_path / "large"
    path.write_bytes(os.urandom(12 * 2**20))
    return path


def test_a_large_file_goes_up_in_parts_and_a_broken_part_alone_goes_again(
    large: Path, s3_root: str, direct: Storage, fault_proxy: FaultProxy
) -> None:
    storage = Storage(StorageConfig(timeout_s=10.0, deadline_s=60.0))
    url = join(s3_root, "large")
    fault_proxy.inject(Fault("slow_down", method="PUT", times=2, match="partNumber=2"))
    fault_proxy.inject(Fault("truncate_fin", method="POST", after_bytes=0, match="uploadId="))  # "complete"
    storage.write_file(url, large)
    assert direct.read_bytes(url) == large.read_bytes()
    assert storage.retries >= 2
    assert fault_proxy.injected == {"slow_down": 2, "truncate_fin": 1}
    sent = [path for method, path, _ in fault_proxy.requests if method == "PUT"]
    assert [sum(f"partNumber={number}&" in path for path in sent) for number in (1, 2, 3)] == [1, 3, 1]
    storage.write_bytes(url, large.read_bytes()[::-1])
    assert direct.read_bytes(url) == large.read_bytes()[::-1]


def test_an_upload_that_fails_leaves_the_old_object_and_no_parts(
    large: Path, url: str, direct: Storage, fault_proxy: FaultProxy
) -> None:
    fault_proxy.inject(Fault("slow_down", method="PUT", times=None, match="partNumber=3"))
    with pytest.raises(StorageError, match=r"object: .*reduce your request rate.*tried for 1 s"):
        Storage(StorageConfig(timeout_s=10.0, deadline_s=1.0)).write_file(url, large)
    assert direct.read_bytes(url) == DATA
    assert fault_proxy.requests[-1].method == "DELETE"
    assert "uploadId=" in fault_proxy.requests[-1].path


def test_many_ranges_of_an_object_cost_one_head_and_a_get_each(url: str, fault_proxy: FaultProxy) -> None:
    storage = Storage(PATIENT)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda offset: storage.read_range(url, offset, 1_000), range(0, 300_000, 10_000)))
    assert [each.method for each in fault_proxy.requests].count("HEAD") == 1
    gets = [each.range for each in fault_proxy.requests if each.method == "GET"]
    assert sorted(gets) == sorted(f"bytes={offset}-{offset + 999}" for offset in range(0, 300_000, 10_000))


def test_nothing_is_listed_where_no_list_is_asked_for(url: str, s3_root: str, fault_proxy: FaultProxy) -> None:
    storage = Storage(PATIENT)
    fault_proxy.inject(Fault("slow_down"))
    data, version = storage.read_versioned(url)
    storage.write_if_version(url, data, version)
    storage.read_bytes(url)
    storage.read_range(url, 0, 10)
    storage.write_bytes(join(s3_root, "other"), b"x")
    storage.write_file(join(s3_root, "other"), Path(__file__))
    assert storage.exists(url)
    assert storage.size(url) == len(DATA)
    assert [path for _, path, _ in fault_proxy.requests if "list-type" in path or "prefix=" in path] == []
    storage.list(s3_root)
    assert [path for _, path, _ in fault_proxy.requests if "list-type" in path]


def test_an_object_that_was_replaced_or_deleted_is_opened_anew(s3_root: str, url: str, direct: Storage) -> None:
    storage = Storage(PATIENT)
    assert storage.read_range(url, 299_999, 1) == DATA[-1:]
    storage.write_bytes(url, DATA + b"more")
    assert storage.read_range(url, 299_999, 5) == DATA[-1:] + b"more"
    direct.write_bytes(url, b"short")
    with pytest.raises(StorageError, match="ends before byte 300004"):
        storage.read_range(url, 299_999, 5)
    assert storage.read_range(url, 0, 5) == b"short"
    direct.delete(url)
    with pytest.raises(FileNotFoundError, match=url):
        storage.read_range(url, 0, 5)


def test_no_key_is_logged_while_requests_fail_and_are_repeated(
    url: str, fault_proxy: FaultProxy, s3_server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(StorageConfig(timeout_s=1.0, deadline_s=0.5))
    fault_proxy.inject(Fault("slow_down", times=None))
    with caplog.at_level(logging.INFO):
        for read, _ in READS.values():
            with pytest.raises(StorageError) as caught:
                read(storage, url)
            assert s3_server.admin.access not in repr(caught.value) + repr(caught.value.__cause__)
    assert s3_server.admin.access not in caplog.text
    assert s3_server.admin.secret not in caplog.text

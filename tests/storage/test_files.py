"""Storage on local paths and on a real S3 server."""

import concurrent.futures
import errno
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segtrain.config import StorageConfig
from segtrain.errors import ConflictError, ShortFileError, StorageError, UserError
from segtrain.storage.files import Storage, is_remote, join

PATIENT = StorageConfig(timeout_s=30.0, deadline_s=60.0)


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest) -> str:
    """An empty folder in each kind of storage."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3_root"))
    return str(request.getfixturevalue("tmp_path") / "root")


@pytest.fixture
def storage() -> Storage:
    return Storage(PATIENT)


def test_what_was_written_is_read(root: str, storage: Storage) -> None:
    url = join(root, "a", "b.bin")
    storage.write_bytes(url, b"0123456789")
    assert storage.read_bytes(url) == b"0123456789"
    assert storage.size(url) == 10
    assert storage.exists(url)
    storage.write_bytes(url, b"")
    assert storage.read_bytes(url) == b""
    assert storage.size(url) == 0


def test_a_range_has_exactly_the_bytes_asked_for(root: str, storage: Storage) -> None:
    url = join(root, "shard")
    data = os.urandom(300_000)
    storage.write_bytes(url, data)
    for offset, length in ((0, 1), (0, len(data)), (123_456, 70_000), (len(data) - 5, 5), (7, 0)):
        assert storage.read_range(url, offset, length) == data[offset : offset + length]


def test_a_range_past_the_end_is_an_error_and_not_a_short_answer(root: str, storage: Storage) -> None:
    url = join(root, "shard")
    storage.write_bytes(url, b"0123456789")
    with pytest.raises(StorageError, match=r"shard ends before byte 16"):
        storage.read_range(url, 6, 10)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path, storage: Storage) -> None:
    path = tmp_path / "a.png"
    with socket.socket(socket.AF_UNIX) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            server.bind(str(path))
        else:
            path.symlink_to("/dev/zero")
        for read in (storage.read_bytes, lambda url: storage.read_range(url, 0, 8)):
            with pytest.raises(UserError, match=r"a\.png is no file but a"):
                pool.submit(read, str(path)).result(timeout=120)


def test_a_range_of_a_local_file_takes_no_memory_for_what_is_not_there(tmp_path: Path, storage: Storage) -> None:
    (tmp_path / "a").write_bytes(b"0123")
    with pytest.raises(ShortFileError, match="4 of 4611686018427387904 bytes"):
        storage.read_range(str(tmp_path / "a"), 0, 2**62)


def test_a_missing_file_is_named(root: str, storage: Storage) -> None:
    url = join(root, "none")
    storage.write_bytes(join(root, "folder", "file"), b"x")
    reads: list[Callable[[str], object]] = [
        storage.read_bytes,
        storage.size,
        lambda each: storage.read_range(each, 0, 1),
    ]
    for read in reads:
        for each in (url, join(root, "folder")):
            with pytest.raises(FileNotFoundError) as caught:
                read(each)
            assert caught.value.filename == each
            assert each in str(caught.value)
    assert not storage.exists(url)
    with pytest.raises(FileNotFoundError):
        storage.write_file(url, Path("no/such/file"))


def test_a_folder_lists_its_direct_children_alone(root: str, storage: Storage) -> None:
    assert storage.list(root) == []
    for name in ("b", "a/x", "a/y", "c/d/e"):
        storage.write_bytes(join(root, name), b"x")
    assert storage.list(root) == ["a", "b", "c"]
    assert storage.list(join(root, "a/")) == ["x", "y"]
    assert storage.list(join(root, "b")) == []
    assert storage.exists(join(root, "c"))


def test_deleting_takes_the_whole_tree_and_nothing_beside_it(root: str, storage: Storage) -> None:
    for name in ("a/x", "a/deep/er/y", "ab", "b"):
        storage.write_bytes(join(root, name), b"x")
    storage.delete(join(root, "a"))
    assert storage.list(root) == ["ab", "b"]
    assert not storage.exists(join(root, "a"))
    storage.delete(join(root, "b"))
    storage.delete(join(root, "never was"))
    assert storage.list(root) == ["ab"]


def test_a_local_file_is_copied_whole(root: str, storage: Storage, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(os.urandom(200_000))
    storage.write_file(join(root, "up", "loaded"), local)
    assert storage.read_bytes(join(root, "up", "loaded")) == local.read_bytes()


def test_a_reader_never_sees_half_a_write(root: str, storage: Storage) -> None:
    url = join(root, "file")
    contents = [bytes([letter]) * 100_000 for letter in (1, 2)]
    storage.write_bytes(url, contents[0])
    done = threading.Event()

    def write() -> None:
        for turn in range(20):
            storage.write_bytes(url, contents[turn % 2])
        done.set()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not done.is_set() and not writer.done():
            assert storage.read_bytes(url) in contents
        writer.result()
    assert storage.list(root) == ["file"]


def test_a_write_over_another_version_is_a_conflict(root: str, storage: Storage) -> None:
    url = join(root, "manifest")
    with pytest.raises(FileNotFoundError, match="manifest"):
        storage.read_versioned(url)
    with pytest.raises(ConflictError, match=r"/manifest was written by somebody else"):
        storage.write_if_version(url, b"x", '"0123456789abcdef0123456789abcdef"')
    storage.write_if_version(url, b"first", None)
    first, version = storage.read_versioned(url)
    assert first == b"first"
    with pytest.raises(ConflictError, match="manifest"):
        storage.write_if_version(url, b"second", None)
    storage.write_if_version(url, b"second", version)
    with pytest.raises(ConflictError, match="manifest"):
        storage.write_if_version(url, b"third", version)
    assert storage.read_bytes(url) == b"second"
    storage.write_bytes(url, b"plain")
    with pytest.raises(ConflictError, match="manifest"):
        storage.write_if_version(url, b"third", storage.read_versioned(url)[1][::-1])
    storage.write_if_version(url, b"third", storage.read_versioned(url)[1])
    assert storage.list(root) == ["manifest"]


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "replaced"])
def test_of_sixteen_writers_of_one_version_one_wins(is_new: bool, root: str) -> None:
    storage = Storage(PATIENT)  # SeaweedFS lets losers wait for seconds
    url = join(root, "manifest")
    version = None
    if not is_new:
        storage.write_bytes(url, b"old")
        version = storage.read_versioned(url)[1]
    start = threading.Barrier(16)

    def write(number: int) -> bool:
        start.wait()
        try:
            storage.write_if_version(url, b"%d" % number, version)
        except ConflictError:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(16)))
    assert won.count(True) == 1
    assert storage.read_bytes(url) == b"%d" % won.index(True)


def test_a_local_writer_that_is_killed_holds_up_nobody(tmp_path: Path, storage: Storage) -> None:
    url = str(tmp_path / "manifest")
    program = (
        "import os, signal; from segtrain.storage.files import Storage\n"
        "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Storage().write_if_version({url!r}, b'killed', None)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert storage.list(str(tmp_path)) == []
    storage.write_if_version(url, b"second", None)
    assert storage.read_bytes(url) == b"second"


def test_threads_share_one_storage(root: str, storage: Storage) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        urls = [join(root, f"{number:02}") for number in range(32)]
        list(pool.map(lambda url: storage.write_bytes(url, url.encode()), urls))
        assert list(pool.map(lambda url: storage.read_range(url, 0, len(url)), urls)) == [u.encode() for u in urls]


def test_storage_is_picklable_after_use(root: str, storage: Storage) -> None:
    storage.write_bytes(join(root, "x"), b"x")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.config == PATIENT
    assert copy.read_bytes(join(root, "x")) == b"x"


def test_a_failed_local_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "file")
    storage.write_bytes(url, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"file: No space left on device"):
        storage.write_bytes(url, b"new")
    assert storage.read_bytes(url) == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_local_file_without_permission_is_the_users_to_mend(tmp_path: Path, storage: Storage) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(UserError, match="no permission"):
        storage.write_bytes(str(tmp_path / "shut" / "file"), b"x")


def _said(error: BaseException | None) -> Iterator[str]:
    """All that could be shown of an error and of those behind it."""
    while error is not None:
        yield f"{error!r} {error} {error.__dict__}"
        error = error.__cause__ or error.__context__


def _every_method(storage: Storage, root: str, local: Path) -> Iterator[Callable[[], object]]:
    url = join(root, "x")
    yield lambda: storage.read_bytes(url)
    yield lambda: storage.read_range(url, 0, 1)
    yield lambda: storage.read_versioned(url)
    yield lambda: storage.write_bytes(url, b"x")
    yield lambda: storage.write_file(url, local)
    yield lambda: storage.write_if_version(url, b"x", None)
    yield lambda: storage.exists(url)
    yield lambda: storage.list(root)
    yield lambda: storage.delete(url)
    yield lambda: storage.size(url)


@pytest.mark.parametrize(
    ("variable", "value", "fix"),
    [
        ("AWS_ACCESS_KEY_ID", "notakeyatall", "AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "notthesecret", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", None, "no credentials were found"),
    ],
)
def test_wrong_keys_are_a_plain_message_without_the_key(
    s3_root: str,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
    value: str | None,
    fix: str,
) -> None:
    caplog.set_level(logging.INFO)
    if value is None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setenv(variable, value)
    secrets = [os.environ.get("AWS_ACCESS_KEY_ID", "-none-"), os.environ.get("AWS_SECRET_ACCESS_KEY", "-none-")]
    for method in _every_method(storage, s3_root, Path(__file__)):
        with pytest.raises(UserError) as caught:
            method()
        message = str(caught.value)
        assert s3_root in message
        assert fix in message
        assert "\n" not in message
        assert not any(secret in text for secret in secrets for text in (*_said(caught.value), caplog.text))


def test_a_missing_bucket_is_named_by_every_method(s3_root: str, storage: Storage) -> None:
    for method in _every_method(storage, "s3://no-such-bucket/folder", Path(__file__)):
        with pytest.raises(UserError, match=r"s3://no-such-bucket/.*the bucket does not exist"):
            method()


def test_a_key_that_may_only_read_reads_and_is_refused_a_write(
    s3_root: str, s3_read_only: dict[str, str], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = join(s3_root, "x")
    storage.write_bytes(url, b"0123")
    for name, value in s3_read_only.items():
        monkeypatch.setenv(name, value)
    reader = Storage(PATIENT)
    assert reader.read_bytes(url) == b"0123"
    assert reader.read_range(url, 1, 2) == b"12"
    assert reader.list(s3_root) == ["x"]
    for write in (
        lambda: reader.write_bytes(url, b"new"),
        lambda: reader.write_file(url, Path(__file__)),
        lambda: reader.write_if_version(join(s3_root, "y"), b"new", None),
        lambda: reader.delete(url),
    ):
        with pytest.raises(UserError, match="access is denied") as caught:
            write()
        keys = (s3_read_only["AWS_ACCESS_KEY_ID"], s3_read_only["AWS_SECRET_ACCESS_KEY"])
        assert not any(key in text for key in keys for text in _said(caught.value))
    assert storage.read_bytes(url) == b"0123"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://", "names no bucket"),
        ("s3://bucket", "names only a bucket"),
        ("s3://keyid:hunter2@bucket/x", "holds no keys"),
        ("s3://Not_A_Bucket!/x", "no valid bucket name"),
        ("gs://bucket/x", "gs:// is not supported"),
    ],
)
def test_a_url_that_cannot_be_is_refused_before_any_request(
    url: str, message: str, s3_root: str, storage: Storage
) -> None:
    for method in (storage.read_bytes, storage.delete):
        with pytest.raises(UserError, match=message) as caught:
            method(url)
        assert "hunter2" not in str(caught.value)


def test_local_storage_imports_no_client_of_s3(tmp_path: Path) -> None:
    program = (
        "import sys; from segtrain.storage.files import Storage; "
        f"Storage().write_bytes({str(tmp_path / 'x')!r}, b'x'); "
        "print(*(name for name in ('s3fs', 'botocore', 'pyarrow', 'tensorflow', 'ray') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_parts_join_with_single_slashes() -> None:
    assert join("s3://bucket", "a", "b/") == "s3://bucket/a/b"
    assert join("runs/", "/x") == "runs/x"
    assert join("/", "x") == "/x"
    assert join("", "a", "", "b") == "a/b"
    assert join("runs") == "runs"
    assert is_remote("s3://bucket/x")
    assert not is_remote("relative/path")


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_files_mark_changes_whenever_it_is_written_or_moved_there(
    tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path) if place == "local" else request.getfixturevalue("s3_root")
    storage = Storage()
    assert storage.marks(join(root, "none")) == {}
    for name, data in (("a", b"1"), ("b", b"2"), ("folder/c", b"3")):
        storage.write_bytes(join(root, "f", name), data)
    before = storage.marks(join(root, "f"))
    assert set(before) == {"a", "b"}
    storage.write_bytes(join(root, "f", "b"), b"4")
    after = storage.marks(join(root, "f"))
    assert (after["a"] == before["a"], after["b"] == before["b"]) == (True, False)
    assert storage.is_file(join(root, "f", "a"))
    assert not storage.is_file(join(root, "f"))
    assert not storage.is_file(join(root, "f", "none"))
    if place == "local":
        times = os.stat(tmp_path / "f" / "b")
        (tmp_path / "moved").write_bytes(b"5")
        os.utime(tmp_path / "moved", ns=(times.st_atime_ns, times.st_mtime_ns))
        os.replace(tmp_path / "moved", tmp_path / "f" / "b")  # same size, same time of writing
        assert storage.marks(join(root, "f"))["b"] != after["b"]


def test_only_the_version_that_was_meant_is_removed(root: str, storage: Storage) -> None:
    url = join(root, "file")
    storage.write_bytes(url, b"old")
    version = storage.read_versioned(url)[1]
    storage.write_bytes(url, b"new")
    storage.delete_if_version(url, version)
    assert storage.read_bytes(url) == b"new"
    storage.delete_if_version(url, storage.read_versioned(url)[1])
    assert not storage.exists(url)
    storage.delete_if_version(url, version)


@pytest.mark.parametrize("write", ["write_bytes", "write_if_version", "write_file"])
def test_a_file_where_a_folder_is_needed_is_named_and_the_other_way_round(
    tmp_path: Path, storage: Storage, write: str
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    rest = {"write_bytes": [b"x"], "write_if_version": [b"x", None], "write_file": [tmp_path / "file"]}[write]
    for url in ("file/a", "file/a/b/c"):
        with pytest.raises(UserError, match=r"/file is a file where a folder is needed; move it away or use another"):
            getattr(storage, write)(str(tmp_path / url), *rest)
    if write != "write_if_version":  # which finds something there
        with pytest.raises(UserError, match=r"/folder is a folder where a file is to be; move it away or use another"):
            getattr(storage, write)(str(tmp_path / "folder"), *rest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]

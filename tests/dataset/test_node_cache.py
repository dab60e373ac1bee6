"""The node cache keeps what was downloaded, within its bound, whoever shares it and whoever is killed."""

import contextlib
import fcntl
import hashlib
import inspect
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.dataset.node_cache import NodeCache
from segtrain.errors import UserError
from tests.support.places import REPOSITORY


def content(name: str, length: int) -> bytes:
    digest = hashlib.sha256(name.encode()).digest()
    return (digest * (length // len(digest) + 1))[:length]


class CountedCache(NodeCache):
    """Counts what it had fetched."""

    misses = 0

    def get(self, name: str, length: int, crc32c: int, fetch: Callable[[], bytes]) -> bytes:
        def counted() -> bytes:
            self.misses += 1
            return fetch()

        return super().get(name, length, crc32c, counted)


def get(cache: NodeCache, name: str, length: int = 100) -> bytes:
    """An entry whose right bytes follow from its name."""
    data = content(name, length)
    return cache.get(name, length, google_crc32c.value(data), lambda: data)


def is_kept(cache: NodeCache, name: str, length: int = 100) -> bool:
    before = cache.hits
    get(cache, name, length)
    return cache.hits > before


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "entries").iterdir())


def kept_bytes(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in entries(folder))


def counted_bytes(folder: Path) -> int:
    return int.from_bytes((folder / "total").read_bytes(), "little")


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "segtrain")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "segtrain.dataset.node_cache"]


def test_what_was_fetched_once_is_a_hit_for_every_later_process(tmp_path: Path) -> None:
    first = CountedCache(tmp_path, 1000)
    assert get(first, "f/s/4-100-0") == get(first, "f/s/4-100-0") == content("f/s/4-100-0", 100)
    assert (first.hits, first.misses) == (1, 1)
    later = CountedCache(tmp_path, 1000)
    get(later, "f/s/4-100-0")
    assert (later.hits, later.misses) == (1, 0)


def test_only_its_owner_can_enter_the_folder_and_an_older_open_one_is_closed(tmp_path: Path, warnings) -> None:
    get(NodeCache(tmp_path / "new", 1000), "a")
    assert warnings() == []
    older = tmp_path / "older"
    shutil.copytree(tmp_path / "new", older)
    for folder in (older, older / "entries"):
        folder.chmod(0o755)
    assert is_kept(NodeCache(older, 1000), "a")
    assert warnings() == [f"the node cache {older} was open to other users; now it is closed to them"]
    for folder in (tmp_path / "new", older):
        assert {path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir()) if path.is_dir()} == {0o700}


NOBODY = 65534
root_alone = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")


@root_alone
@pytest.mark.parametrize("what", ["folder", "entries", "link", "link to theirs"])
def test_another_users_folder_or_link_of_that_name_is_refused(tmp_path: Path, what: str) -> None:
    folder, theirs = tmp_path / "cache", tmp_path / "theirs"
    (theirs if "link" in what else folder).mkdir()
    if what == "entries":
        (folder / what).mkdir()
        os.chown(folder / what, NOBODY, NOBODY)
    elif what == "folder":
        os.chown(folder, NOBODY, NOBODY)
    else:
        folder.symlink_to(theirs)
        os.chown(theirs if "theirs" in what else folder, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(UserError, match=f"data.node_cache: {folder}.* is another user's, .* give a folder of your own"):
        NodeCache(folder, 1000)
    assert not any(theirs.iterdir() if theirs.exists() else [])


def test_ones_own_link_to_a_larger_disk_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    get(NodeCache(tmp_path / "cache", 1000), "a")
    assert len(entries(tmp_path / "disk")) == 1


@root_alone
def test_an_entry_that_another_user_left_is_fetched_again(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 1000)
    get(cache, "a")
    os.chown(entries(tmp_path)[0], NOBODY, NOBODY)
    assert not is_kept(cache, "a")
    assert is_kept(cache, "a")


def test_the_same_range_of_another_data_set_is_another_entry(tmp_path: Path) -> None:
    cache = CountedCache(tmp_path, 1000)
    one, other = get(cache, "aaaa/fold=0/part-0/4-100-0"), get(cache, "bbbb/fold=0/part-0/4-100-0")
    assert one != other
    assert cache.misses == len(entries(tmp_path)) == 2


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    get(NodeCache(tmp_path / "cache", 1000), "../../escaped/1-2-3")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert len(entries(tmp_path / "cache")) == 1


def test_the_least_recently_used_go_first_down_to_nine_tenths(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 300)
    for name in "abc":
        get(cache, name)
    assert is_kept(cache, "a")
    get(cache, "d")  # 400 bytes are over the limit; b and c go, for with one of them there would be 300, over 270
    assert kept_bytes(tmp_path) == counted_bytes(tmp_path) == 200
    assert is_kept(cache, "a")
    assert is_kept(cache, "d")
    assert not is_kept(cache, "b")


@settings(max_examples=60)
@given(
    limit=st.integers(1, 2000),
    gets=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 700), st.booleans()), max_size=25),
)
def test_the_bound_holds_and_the_bytes_are_right_whatever_is_asked_for(
    limit: int, gets: list[tuple[int, int, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        caches = [CountedCache(folder, limit), CountedCache(folder, limit)]
        for key, length, which in gets:
            assert get(caches[which], f"{key}-{length}", length) == content(f"{key}-{length}", length)
            assert kept_bytes(folder) == counted_bytes(folder) <= limit
        assert sum(cache.hits + cache.misses for cache in caches) == len(gets)


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "empty"])
def test_a_damaged_entry_is_fetched_again_and_replaced(tmp_path: Path, damage: str) -> None:
    cache = NodeCache(tmp_path, 1000)
    data = get(cache, "a")
    (entry,) = entries(tmp_path)
    spoiled = {"flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "longer": data + b"x", "empty": b""}
    entry.write_bytes(spoiled[damage])
    assert get(NodeCache(tmp_path, 1000), "a") == data
    assert entry.read_bytes() == data
    assert counted_bytes(tmp_path) == 100


def test_a_failed_fetch_passes_through_and_leaves_neither_entry_nor_lock(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise OSError("storage is away")

    cache = NodeCache(tmp_path, 1000, longest_wait_s=0.1)
    with pytest.raises(OSError, match="storage is away"):
        cache.get("a", 100, 0, fail)
    assert entries(tmp_path) == []
    get(cache, "a")
    assert is_kept(cache, "a")


def test_an_entry_larger_than_the_limit_is_passed_on_with_one_warning(tmp_path: Path, warnings) -> None:
    cache = NodeCache(tmp_path, 150)
    for _ in range(2):
        assert get(cache, "large", 151) == content("large", 151)
    assert entries(tmp_path) == []
    assert ["limited to 150 bytes, less than one entry of 151" in message for message in warnings()] == [True]
    get(cache, "small")
    assert is_kept(cache, "small")


@pytest.mark.parametrize("occupied", ["", "entries", "locks", "total/is a folder"])
def test_where_nothing_can_be_written_everything_is_fetched_with_one_warning(
    tmp_path: Path, warnings, occupied: str
) -> None:
    folder = tmp_path / "cache"
    blocker = folder / occupied if occupied else folder  # a file in a folder's place stops root as well
    if occupied:
        folder.mkdir(mode=0o700)
    blocker.parent.mkdir(exist_ok=True)
    blocker.write_bytes(b"")
    cache = CountedCache(folder, 1000)
    for _ in range(2):
        assert get(cache, "a") == content("a", 100)
    assert (cache.hits, cache.misses) == (0, 2)
    assert [str(folder) in message for message in warnings()] == [True]


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files end at 1 MiB: a write beyond that fails as it does on a full disk, after a part of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_failed_write_leaves_nothing_behind_and_what_is_kept_is_still_served(tmp_path: Path, warnings) -> None:
    cache = NodeCache(tmp_path, 2**30)
    get(cache, "small")
    for _ in range(2):
        assert get(cache, "large", 2**21) == content("large", 2**21)
    assert is_kept(cache, "small")
    assert kept_bytes(tmp_path) == counted_bytes(tmp_path) == 100
    assert list((tmp_path / "filling").iterdir()) == []
    assert ["takes nothing more (File too large)" in message for message in warnings()] == [True]


def test_many_threads_that_want_one_entry_fetch_it_once(tmp_path: Path) -> None:
    caches = [NodeCache(tmp_path, 1000), NodeCache(tmp_path, 1000)]
    data = content("a", 100)
    fetched, got = [], []
    everybody_waits = threading.Barrier(8)

    def fetch() -> bytes:
        fetched.append(1)
        time.sleep(0.05)
        return data

    def ask(number: int) -> None:
        everybody_waits.wait()
        got.append(caches[number % 2].get("a", 100, google_crc32c.value(data), fetch))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [data] * 8
    assert len(fetched) == 1
    assert sum(cache.hits for cache in caches) == 7


def test_whoever_is_stuck_with_a_lock_stops_nobody(tmp_path: Path, warnings) -> None:
    cache = NodeCache(tmp_path, 1000, longest_wait_s=0.05)
    get(cache, "a")
    (lock,) = (tmp_path / "locks").iterdir()
    (tmp_path / "entries" / "a").unlink()
    with lock.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert get(cache, "a") == content("a", 100)
    assert len(warnings()) == 1
    assert "has been locked for 0.05 s" in warnings()[0]


def test_a_tenth_of_a_small_disk_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get(NodeCache(tmp_path, 10_000), "a")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=300))
    cache = NodeCache(tmp_path, 10_000)  # 100 bytes are there already, and 270 more may come
    for name in "bcde":
        get(cache, name)
    assert kept_bytes(tmp_path) <= 370


def test_opening_counts_again_and_keeps_to_a_lower_limit(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 1000)
    for name in "abcd":
        get(cache, name)
    (tmp_path / "total").write_bytes(b"torn")
    NodeCache(tmp_path, 1000)
    assert counted_bytes(tmp_path) == 400
    NodeCache(tmp_path, 250)
    assert kept_bytes(tmp_path) == counted_bytes(tmp_path) == 200
    assert is_kept(cache, "d")


def test_opening_removes_what_a_killed_process_was_writing_but_not_what_is_being_written(tmp_path: Path) -> None:
    NodeCache(tmp_path, 1000)
    for name in ("0001", "0002"):
        (tmp_path / "filling" / name).write_bytes(b"a part")
    with (tmp_path / "locks" / "0002").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        NodeCache(tmp_path, 1000)
    assert [path.name for path in (tmp_path / "filling").iterdir()] == ["0002"]


# Imports nothing slow, so that many of them can be killed.
FILL = f"""
import hashlib, random, sys
from pathlib import Path
import google_crc32c
from segtrain.dataset.node_cache import NodeCache
from segtrain.errors import UserError

{inspect.getsource(content)}
{inspect.getsource(get)}
cache = NodeCache(Path(sys.argv[1]), 4_000_000)
print("ready", flush=True)
while True:
    get(cache, f"entry-{{random.randrange(1000)}}", 400_000)
"""


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that fills the cache without end; killed at the end of the block."""
    command = [sys.executable, "-c", FILL, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_processes_that_fill_at_once_keep_to_the_bound_together(tmp_path: Path) -> None:
    with filling(tmp_path), filling(tmp_path):
        looked = 0
        while looked < 50 or kept_bytes(tmp_path) <= 2_000_000:
            looked += 1
            with (tmp_path / "total").open("rb") as total:  # as its lock guards every change, nothing moves meanwhile
                fcntl.flock(total, fcntl.LOCK_EX)
                assert kept_bytes(tmp_path) <= 4_000_000
            time.sleep(0.01)


def test_a_process_killed_at_any_moment_leaves_no_damaged_entry_and_no_lock(tmp_path: Path, warnings) -> None:
    moments = random.Random(0)
    for _ in range(20):
        with filling(tmp_path):
            time.sleep(moments.uniform(0.0, 0.06))
        assert all(path.read_bytes() == content(path.name, 400_000) for path in entries(tmp_path))
        cache = NodeCache(tmp_path, 4_000_000, longest_wait_s=0.0)
        assert list((tmp_path / "filling").iterdir()) == []
        assert kept_bytes(tmp_path) == counted_bytes(tmp_path) <= 4_000_000
        for number in range(20):
            get(cache, f"entry-{number}", 400_000)
    assert warnings() == []

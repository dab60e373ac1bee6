"""A folder on a node's own disk that keeps what its processes have downloaded.

    <folder>/entries/   one file an entry
    <folder>/filling/   entries being written, one a lock at most
    <folder>/locks/     the holder of an entry's lock may fetch and store the entry
    <folder>/total      bytes of all entries (8 bytes, little-endian); its lock guards every change of `entries/`

- Every lock is an `flock` on a descriptor of its own: threads exclude each other as processes do, and the kernel drops
  the lock when its holder is killed. A holder of both kinds takes the entry's lock first.
- An entry appears by a rename. Hits take no lock: a process that has opened a file can read it after its removal.
- Only its owner may enter the folder. Others could read the entries, or leave a forged one, which a checksum does not
  find.

Nothing is synced to disk. After a power failure an entry may be torn and the total wrong; but an entry is compared
with its checksum whenever it is read, and entries are counted anew whenever a process opens the cache.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from segtrain.errors import UserError
from segtrain.storage import checksums

logger = logging.getLogger(__name__)

# Many more than the downloads under way on a node, so that two of them seldom wait for one lock.
LOCKS = 1024
# Evicting looks at every entry; to free a tenth of the limit at a time makes that rare.
EVICT_TO = 0.9
# A holder downloads one entry. One that takes longer than this is stopped or stuck, and nobody should stop with it.
LONGEST_WAIT_S = 180.0
FIRST_POLL_S, LONGEST_POLL_S = 0.001, 0.02
# Others write to the disk as well.
FREE_SHARE = 0.9
TOTAL = struct.Struct("<q")


class NodeCache:
    """Keeps entries up to `limit_bytes` or nine tenths of the disk's free space; the least recently used go first.

    All threads and processes that use the folder share it. It must be on a local disk, and any of them may be killed at
    any moment. Where it cannot be written to (permissions, a full disk), one warning is logged: entries that are there
    are still served, the rest is fetched.

    Raises `UserError` where the folder is another user's, or leads to one.
    """

    def __init__(self, folder: Path, limit_bytes: int, *, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        self._folder = folder
        self._entries = folder / "entries"
        self._filling = folder / "filling"
        self._locks = folder / "locks"
        self._total = folder / "total"
        self._limit_bytes = limit_bytes
        self._longest_wait_s = longest_wait_s
        self._stores = True
        self._is_too_small = False
        self._lock = threading.Lock()
        self.hits = 0
        """Entries that this object found whole."""
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if _claim(folder):
                logger.warning("the node cache %s was open to other users; now it is closed to them", folder)
            for each in (self._entries, self._filling, self._locks):
                _claim(each)
            self._remove_leftovers()
            with _locked(self._total, self._longest_wait_s) as total:
                self._make_room(total, 0)
                free = shutil.disk_usage(folder).free
                self._limit_bytes = min(limit_bytes, _read_total(total) + int(FREE_SHARE * free))
        except OSError as error:
            self._stop_storing(error)

    def get(self, name: str, length: int, crc32c: int, fetch: Callable[[], bytes]) -> bytes:
        """The `length` bytes called `name` whose CRC32C is `crc32c`.

        `fetch` is called where there is no such entry or it is damaged: once, however many threads and processes ask
        at the same time. It returns bytes that it has checked. Its errors pass through, and then nothing is stored.
        """
        path = self._entries / quote(name, safe="=")
        data = _read_entry(path, length, crc32c)
        if data is None and not self._takes(length):
            return fetch()
        with contextlib.ExitStack() as stack:
            if data is None:
                try:
                    stack.enter_context(_locked(self._locks / _lock_of(path), self._longest_wait_s))
                except OSError as error:
                    self._stop_storing(error)
                data = _read_entry(path, length, crc32c)  # the lock's holder before may have stored it
            if data is None:
                return self._fill(path, fetch)
        with self._lock:
            self.hits += 1
        return data

    def _fill(self, path: Path, fetch: Callable[[], bytes]) -> bytes:
        data = fetch()
        if self._stores:
            try:
                self._store(path, data)
            except OSError as error:
                self._stop_storing(error)
        return data

    def _store(self, path: Path, data: bytes) -> None:
        """Write an entry whose lock is held, so nobody else uses its temporary name."""
        temporary = self._filling / _lock_of(path)
        try:
            temporary.write_bytes(data)
            _mark_used(temporary)
            with _locked(self._total, self._longest_wait_s) as total:
                self._remove(total, path)
                if _read_total(total) + len(data) > self._limit_bytes:
                    self._make_room(total, len(data))
                # In this order, so that whoever is killed in between leaves a total that is too high, never too low.
                _write_total(total, _read_total(total) + len(data))
                temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _remove(self, total: int, path: Path) -> None:
        """Delete an entry that turned out damaged, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            _write_total(total, _read_total(total) - size)

    def _make_room(self, total: int, length: int) -> None:
        """Count all entries and, where `length` more bytes would not fit, delete old ones until there is ample room."""
        with os.scandir(self._entries) as found:
            entries = [(entry.stat(), entry.path) for entry in found]
        used = sum(facts.st_size for facts, _ in entries)
        if used + length > self._limit_bytes:
            for facts, path in sorted(entries, key=lambda entry: entry[0].st_mtime_ns):
                if used + length <= EVICT_TO * self._limit_bytes:
                    break
                os.unlink(path)
                used -= facts.st_size
        _write_total(total, used)

    def _remove_leftovers(self) -> None:
        """Delete what killed processes were writing: temporary files whose lock is free."""
        for temporary in self._filling.iterdir():
            with contextlib.suppress(TimeoutError), _locked(self._locks / temporary.name, 0):
                temporary.unlink(missing_ok=True)

    def _takes(self, length: int) -> bool:
        if length > self._limit_bytes:
            with self._lock:
                is_first, self._is_too_small = not self._is_too_small, True
            if is_first:
                logger.warning(
                    "the node cache %s is limited to %d bytes, less than one entry of %d; such entries are not kept",
                    self._folder,
                    self._limit_bytes,
                    length,
                )
        return self._stores and length <= self._limit_bytes

    def _stop_storing(self, error: OSError) -> None:
        with self._lock:
            is_first, self._stores = self._stores, False
        if is_first:
            logger.warning(
                "the node cache %s takes nothing more (%s); what it lacks is downloaded",
                self._folder,
                error.strerror or error,
            )


def _claim(folder: Path) -> bool:
    """Make a folder that only this user can enter; whether it was there, as of an earlier version, and open to others.

    Raises UserError where it is another user's, or a link that one made or that leads to another's.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.lstat().st_uid not in (os.geteuid(), 0):
        raise _not_ours(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        facts = os.fstat(descriptor)
        if facts.st_uid != os.geteuid():
            raise _not_ours(folder)
        is_open = bool(facts.st_mode & 0o077)
        if is_open:
            os.fchmod(descriptor, 0o700)
        return is_open
    finally:
        os.close(descriptor)


def _not_ours(folder: Path) -> UserError:
    return UserError(
        f"data.node_cache: {folder} is another user's, who could read what is cached and change what is trained on; "
        f"give a folder of your own, or one that is not there yet"
    )


def _lock_of(entry: Path) -> str:
    return f"{zlib.crc32(entry.name.encode()) % LOCKS:04d}"


def _read_entry(path: Path, length: int, crc32c: int) -> bytes | None:
    """The bytes of an entry, which now counts as just used; None where it is missing, unreadable or damaged."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():  # left there while the folder was open to others
                return None
            data = file.read()
    except OSError:
        return None
    if len(data) != length or checksums.crc32c(data) != crc32c:
        return None
    with contextlib.suppress(OSError):  # evicted in the meantime: the bytes are still right
        _mark_used(path)
    return data


def _mark_used(path: Path) -> None:
    now_ns = time.time_ns()  # finer than the kernel's own stamps, which tie within 4 ms
    os.utime(path, ns=(now_ns, now_ns))


@contextlib.contextmanager
def _locked(path: Path, longest_wait_s: float) -> Iterator[int]:
    """A descriptor of the file at `path`, made where there is none, whose lock is held by nobody else.

    Raises `TimeoutError` where the lock is not free within `longest_wait_s`, and other `OSError`s.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    give_up, wait_s = time.monotonic() + longest_wait_s, FIRST_POLL_S
    try:
        while not _try_lock(descriptor):
            if time.monotonic() >= give_up:
                raise TimeoutError(f"{path} has been locked for {longest_wait_s:g} s")
            time.sleep(wait_s)
            wait_s = min(LONGEST_POLL_S, 2 * wait_s)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_total(descriptor: int) -> int:
    stored = os.pread(descriptor, TOTAL.size, 0)
    return int(TOTAL.unpack(stored)[0]) if len(stored) == TOTAL.size else 0


def _write_total(descriptor: int, total: int) -> None:
    os.pwrite(descriptor, TOTAL.pack(total), 0)

"""The only way from a path or an `s3://` URL to bytes: atomic writes, retries, and errors that name the URL.

`segtrain.locations` says what a location means. Local paths go through `pathlib`, and `s3://bucket/key` through
`segtrain.storage.s3_files`, which is imported when the first such URL comes. Every method raises

- `FileNotFoundError` with the URL where there is nothing;
- `UserError` where only the user can help: no permission, wrong key, no such bucket;
- `StorageError` for everything else that storage does, after the retries.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from segtrain.config import StorageConfig
from segtrain.errors import ConflictError, NoSpaceError, ShortFileError, StorageError, UserError, missing_file
from segtrain.locations import is_remote, join, local_path

if TYPE_CHECKING:
    from segtrain.storage.s3_files import S3Files

__all__ = ["NO_SPACE", "TEMPORARY_SUFFIX", "LocalFiles", "Storage", "is_remote", "join", "local_path"]

TEMPORARY_SUFFIX = ".segtrain-tmp"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Storage:
    """Files at local paths and `s3://` URLs.

    Cheap to make, picklable, and safe to share between threads: connections are opened on first use in each process.
    """

    def __init__(self, config: StorageConfig | None = None) -> None:
        self.config = config or StorageConfig()
        self._local = LocalFiles()
        self._remote: S3Files | None = None
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[type["Storage"], tuple[StorageConfig]]:
        return Storage, (self.config,)

    def read_bytes(self, url: str, *, at_most: int | None = None) -> bytes:
        """The whole file.

        Raises `UserError`, before anything is read, if it has more than `at_most` bytes.
        """
        if at_most is not None and self.size(url) > at_most:
            raise UserError(f"{url} has more than {at_most} bytes, and so is not what its name says")
        return self._files(url).read_bytes(url)

    def read_if_there(self, url: str, *, at_most: int | None = None) -> bytes | None:
        """`read_bytes`, or None if there is no such file."""
        with contextlib.suppress(FileNotFoundError):
            return self.read_bytes(url, at_most=at_most)
        return None

    def read_range(self, url: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        In object storage this is one request, after a first one for each of the last few hundred objects. The caller
        checks the bytes: nothing else does. A file that is read by ranges must not change under its name meanwhile.
        Raises `ShortFileError` if the file ends before.
        """
        return self._files(url).read_range(url, offset, length)

    def write_bytes(self, url: str, data: bytes) -> None:
        """Write a file. A reader sees the old file or the whole new one, never a part."""
        self._files(url).write_bytes(url, data)

    def read_versioned(self, url: str) -> tuple[bytes, str]:
        """The whole file and its version for `write_if_version`: the ETag of an object, a digest of a local file."""
        return self._files(url).read_versioned(url)

    def write_if_version(self, url: str, data: bytes, version: str | None) -> None:
        """Write a file over exactly this version; with None, only if nothing is there.

        Of several such writers that start from one version exactly one succeeds. Plain writes do not wait for them.
        Raises `ConflictError` if the file is not that version any more.
        """
        self._files(url).write_if_version(url, data, version)

    def write_file(self, url: str, local: Path) -> None:
        """Copy or upload a local file, with the promise of `write_bytes`."""
        if not local.is_file():
            raise missing_file(str(local))
        self._files(url).write_file(url, local)

    def exists(self, url: str) -> bool:
        """Whether there is a file, or anything below the URL."""
        return self._files(url).kind(url) is not None

    def list(self, url: str) -> list[str]:
        """Names of the direct children, sorted; empty where there are none."""
        return self._files(url).list(url)

    def marks(self, url: str) -> dict[str, str]:
        """Name -> mark of the files directly in a folder; empty if there are none.

        A mark is made of size and times, or of an object's ETag. It changes when a file is written, replaced or moved
        there. The bytes may be the same under another mark.
        """
        return self._files(url).marks(url)

    def is_file(self, url: str) -> bool:
        """Whether there is a file, and no folder."""
        return self._files(url).kind(url) == "file"

    def delete(self, url: str) -> None:
        """Remove a file, or everything below a folder. It is no error if nothing is there."""
        self._files(url).delete(url)

    def delete_if_version(self, url: str, version: str | None) -> None:
        """Remove a file if it is still the version that `read_versioned` gave.

        In object storage a version that is put at the same instant may go as well.
        """
        self._files(url).delete_if_version(url, version)

    def remove_leftovers(self, url: str) -> None:
        """Remove what killed writers have left in a local folder. In object storage they leave nothing."""
        if not is_remote(url):
            self._local.remove_leftovers(url)

    def size(self, url: str) -> int:
        """Bytes of a file."""
        return self._files(url).size(url)

    @property
    def retries(self) -> int:
        """Number of attempts that followed a failed one, over all threads of this process."""
        return self._remote.retries if self._remote else 0

    def _files(self, url: str) -> "LocalFiles | S3Files":
        if not is_remote(url):
            return self._local
        with self._opening:
            if self._remote is None:
                from segtrain.storage.s3_files import S3Files  # s3fs takes a third of a second to import

                self._remote = S3Files(self.config)
            return self._remote


class LocalFiles:
    """The methods of `Storage` on the file system of this machine."""

    def read_bytes(self, url: str) -> bytes:
        with _errors_name(url), _open_file(local_path(url), url) as file:
            return file.read()

    def read_range(self, url: str, offset: int, length: int) -> bytes:
        with _errors_name(url), _open_file(local_path(url), url) as file:
            # What a damaged manifest asks for may be more than memory, and is not made room for.
            length_there = max(0, min(length, os.fstat(file.fileno()).st_size - offset))
            file.seek(offset)
            data = file.read(length_there)
        if len(data) != length:
            raise ShortFileError(
                f"{url} ends before byte {offset + length}: {len(data)} of {length} bytes could be read"
            )
        return data

    def write_bytes(self, url: str, data: bytes) -> None:
        with _errors_name(url), _replacing(local_path(url)) as temporary:
            temporary.write_bytes(data)

    def read_versioned(self, url: str) -> tuple[bytes, str]:
        data = self.read_bytes(url)
        return data, _version(data)

    def write_if_version(self, url: str, data: bytes, version: str | None) -> None:
        path = local_path(url)
        with _errors_name(url), _locked(path), _replacing(path) as temporary:
            if version != (_version(path.read_bytes()) if path.exists() else None):
                raise ConflictError(f"{url} was written by somebody else in the meantime")
            temporary.write_bytes(data)

    def write_file(self, url: str, local: Path) -> None:
        with _errors_name(url), _replacing(local_path(url)) as temporary:
            shutil.copyfile(local, temporary)

    def kind(self, url: str) -> str | None:
        """`file`, or another word for a folder and the like; None where there is nothing."""
        path = local_path(url)
        with _errors_name(url):
            if path.is_file():
                return "file"
            return "other" if path.exists() else None

    def list(self, url: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError), _errors_name(url):
            return sorted(name for name in os.listdir(local_path(url)) if not name.endswith(TEMPORARY_SUFFIX))
        return []

    def marks(self, url: str) -> dict[str, str]:
        with contextlib.suppress(FileNotFoundError), _errors_name(url), os.scandir(local_path(url)) as entries:
            return {one.name: _mark(one.stat()) for one in entries if one.is_file()}
        return {}

    def delete(self, url: str) -> None:
        path = local_path(url)
        with contextlib.suppress(FileNotFoundError), _errors_name(url):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def delete_if_version(self, url: str, version: str | None) -> None:
        path = local_path(url)
        with _errors_name(url), _locked(path):
            if path.is_file() and _version(path.read_bytes()) == version:
                path.unlink()

    def remove_leftovers(self, url: str) -> None:
        with _errors_name(url):
            for path in local_path(url).glob(f".*{TEMPORARY_SUFFIX}"):
                with contextlib.suppress(OSError), path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its writer holds the lock as long as it lives
                    path.unlink()

    def size(self, url: str) -> int:
        path = local_path(url)
        with _errors_name(url):
            if path.is_dir():
                raise missing_file(url)
            return path.stat().st_size


def _open_file(path: Path, url: str) -> BinaryIO:
    """Open a file to read it.

    Raises `UserError` for a pipe, a socket or a device, whose end might never come.
    """

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | os.O_NONBLOCK)  # a pipe that nobody writes to is not waited for
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return descriptor
        os.close(descriptor)
        raise UserError(f"{url} is no file but a pipe, a socket or a device; remove it or give another path")

    try:
        return open(path, "rb", opener=opener)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise UserError(f"{url} is no file but a socket or a device; remove it or give another path") from None
        raise


def _mark(stat: os.stat_result) -> str:
    """Size, time of writing and time of change. The last one is new even for a file that was moved here."""
    return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def _errors_name(url: str) -> Iterator[None]:
    """Turn the operating system's errors into ours. A folder in place of a file counts as missing."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise missing_file(url) from None
    except PermissionError:
        raise UserError(f"{url}: no permission; change the file's mode or use another path") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise UserError(f"{url}: {error.strerror}; use another path") from None
        if error.errno in NO_SPACE:
            raise NoSpaceError(f"{url}: {error.strerror}; make room or use another path") from error
        raise StorageError(f"{url}: {error.strerror or error}") from error


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises UserError if a file is in the place of one of them.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next((one for one in (folder, *folder.parents) if one.exists() and not one.is_dir()), folder)
        raise UserError(f"{file} is a file where a folder is needed; move it away or use another path") from None


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`. When the block ends without an error, it is synced to disk and takes its place.

    It is locked until then. One without a lock was left by a killed writer.
    """
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    with _new_locked(temporary):
        try:
            yield temporary
            _sync(temporary)
            if path.is_dir():
                raise UserError(f"{path} is a folder where a file is to be; move it away or use another path")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    _sync(path.parent)


@contextlib.contextmanager
def _new_locked(path: Path) -> Iterator[None]:
    """Make an empty file and lock it for the block, if the file system has locks."""
    while True:
        with path.open("xb") as file:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # else somebody took it for a leftover before it was locked
                yield
                return


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of this path for the block, in any process. The kernel frees it when its holder is killed."""
    _make_folder(path.parent)
    lock = path.with_name(f".{path.name[:100]}.lock{TEMPORARY_SUFFIX}")
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(lock.open("wb"))
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # else the holder that this one waited for has removed it
                break
            stack.close()
        try:
            yield
        finally:
            lock.unlink()


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The only way from a path or an `s3://` URL to bytes: atomic writes, retries, and errors that name the URL.

Local paths go through `pathlib`; `s3://bucket/key` goes through `segtrain.s3`, which is imported when the first such
URL comes. Every method raises

- `FileNotFoundError` with the URL where there is nothing;
- `UserError` where only the user can help: no permission, wrong key, no such bucket;
- `StorageError` for everything else that storage does, after the retries.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from segtrain.config import StorageConfig
from segtrain.errors import StorageError, UserError

if TYPE_CHECKING:
    from segtrain.s3 import S3Files

TEMPORARY_SUFFIX = ".segtrain-tmp"


def is_remote(url: str) -> bool:
    """Whether the URL is in object storage; raises `UserError` for a scheme other than `s3://`."""
    if url.startswith("s3://"):
        return True
    scheme, separator, _ = url.partition("://")
    if separator:
        raise UserError(f"{scheme}:// is not supported; give a local path or an s3://bucket/key URL")
    return False


def join(url: str, *parts: str) -> str:
    """The URL with path segments put after it, separated by single slashes."""
    tail = "/".join(part.strip("/") for part in parts if part.strip("/"))
    if not url or not tail:
        return url or tail
    return f"{url.rstrip('/')}/{tail}"


class Storage:
    """Files at local paths and `s3://` URLs.

    Cheap to make, picklable, and safe to share between threads: connections are opened on first use in each process.
    """

    def __init__(self, config: StorageConfig | None = None) -> None:
        self.config = config or StorageConfig()

    def __reduce__(self) -> tuple[type["Storage"], tuple[StorageConfig]]:
        return Storage, (self.config,)

    def read_bytes(self, url: str) -> bytes:
        """The whole file."""
        return self._files(url).read_bytes(url)

    def read_range(self, url: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. Raises `StorageError` where the file ends before."""
        return self._files(url).read_range(url, offset, length)

    def write_bytes(self, url: str, data: bytes) -> None:
        """Write a file; a reader sees the old file or the whole new one, never a part."""
        self._files(url).write_bytes(url, data)

    def write_file(self, url: str, local: Path) -> None:
        """Copy or upload a local file, with the promise of `write_bytes`."""
        if not local.is_file():
            raise _missing(str(local))
        self._files(url).write_file(url, local)

    def exists(self, url: str) -> bool:
        """Whether there is a file, or anything below the URL."""
        return self._files(url).exists(url)

    def list(self, url: str) -> list[str]:
        """Names of the direct children, sorted; empty where there are none."""
        return self._files(url).list(url)

    def delete(self, url: str) -> None:
        """Remove a file, or everything below a folder; nothing there is fine."""
        self._files(url).delete(url)

    def size(self, url: str) -> int:
        """Bytes of a file."""
        return self._files(url).size(url)

    def _files(self, url: str) -> "LocalFiles | S3Files":
        return self._remote if is_remote(url) else self._local

    # Two threads may both build one of these; they are alike and the later one stays.
    @cached_property
    def _local(self) -> "LocalFiles":
        return LocalFiles()

    @cached_property
    def _remote(self) -> "S3Files":
        from segtrain.s3 import S3Files  # s3fs takes half a second to import

        return S3Files(self.config)


class LocalFiles:
    """The methods of `Storage` on the file system of this machine."""

    def read_bytes(self, url: str) -> bytes:
        with _errors_name(url):
            return _path(url).read_bytes()

    def read_range(self, url: str, offset: int, length: int) -> bytes:
        with _errors_name(url), _path(url).open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) != length:
            raise StorageError(f"{url} ends before byte {offset + length}: {len(data)} of {length} bytes could be read")
        return data

    def write_bytes(self, url: str, data: bytes) -> None:
        with _errors_name(url), _replacing(_path(url)) as temporary:
            temporary.write_bytes(data)

    def write_file(self, url: str, local: Path) -> None:
        with _errors_name(url), _replacing(_path(url)) as temporary:
            shutil.copyfile(local, temporary)

    def exists(self, url: str) -> bool:
        with _errors_name(url):
            return _path(url).exists()

    def list(self, url: str) -> list[str]:
        try:
            with _errors_name(url):
                return sorted(name for name in os.listdir(_path(url)) if not name.endswith(TEMPORARY_SUFFIX))
        except FileNotFoundError:
            return []

    def delete(self, url: str) -> None:
        path = _path(url)
        with contextlib.suppress(FileNotFoundError), _errors_name(url):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def size(self, url: str) -> int:
        path = _path(url)
        with _errors_name(url):
            if path.is_dir():
                raise _missing(url)
            return path.stat().st_size


def _missing(url: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)


def _path(url: str) -> Path:
    return Path(url).expanduser()


@contextlib.contextmanager
def _errors_name(url: str) -> Iterator[None]:
    """Turn the operating system's errors into ours. A folder where a file should be counts as missing."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise _missing(url) from None
    except PermissionError:
        raise UserError(f"{url}: no permission; change the file's mode or use another path") from None
    except OSError as error:
        raise StorageError(f"{url}: {error.strerror or error}") from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, safely on disk, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

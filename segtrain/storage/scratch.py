"""Folders for files that are needed for a while, in the system's temporary folder.

Each is locked as long as its process lives. A process that is killed leaves its folder behind; the kernel drops the
lock, and whoever makes the next folder removes it.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from segtrain.errors import NoSpaceError, StorageError
from segtrain.storage.files import NO_SPACE

PREFIX = "segtrain-scratch-"


@contextlib.contextmanager
def scratch_folder(what: str) -> Iterator[Path]:
    """An empty folder for the block, with `what` in its name; removed at its end.

    Raises `NoSpaceError` where the disk that it is on is full, also for what is written in the block by other means
    than `Storage`, and `StorageError` where no temporary folder can be written to.
    """
    remove_leftovers()
    with _naming_full_disks(), contextlib.ExitStack() as stack:
        folder = _locked_folder(what, stack)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(what: str, stack: contextlib.ExitStack) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{what}-"))
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as attempt:
            descriptor = os.open(folder, os.O_RDONLY)
            attempt.callback(os.close, descriptor)
            if _lock(descriptor) is not False and folder.exists():
                stack.enter_context(attempt.pop_all())
                return folder
        # Somebody took it for a leftover before it was locked.


def _lock(descriptor: int) -> bool | None:
    """Whether this process has the lock now; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_leftovers() -> None:
    """Remove this user's folders that no process has locked."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                _remove_if_left(entry)


def _remove_if_left(entry: os.DirEntry[str]) -> None:
    with contextlib.suppress(OSError):
        if entry.stat(follow_symlinks=False).st_uid != os.getuid():
            return
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if _lock(descriptor):
                shutil.rmtree(entry.path, ignore_errors=True)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _naming_full_disks() -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if "No usable temporary directory" in str(error):
            raise StorageError(f"{error.strerror}; name one that can be written to in TMPDIR") from None
        if error.errno not in NO_SPACE:
            raise
        raise NoSpaceError(
            f"{tempfile.gettempdir()}, the folder for temporary files: {os.strerror(error.errno or 0)}; make room "
            "there or name another folder in TMPDIR"
        ) from error

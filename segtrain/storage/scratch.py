"""Folders for files that are needed for a while, in the system's temporary folder.

A folder is locked while its process lives. A killed process leaves its folder behind, but the kernel drops the lock,
and whoever makes the next folder removes it.
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

    Raises `NoSpaceError` if its disk is full, whatever writes in the block.
    Raises `StorageError` if no temporary folder can be written to.
    """
    remove_leftovers()
    with _naming_full_disks(), locked_folder(None, f"{PREFIX}{what}-") as folder:
        yield folder


@contextlib.contextmanager
def temporary_files_in_scratch(what: str) -> Iterator[None]:
    """Give Python another temporary folder for the block, in all threads of the process, and remove it afterwards.

    TensorFlow writes the source of each function that it converts to a file in the temporary folder and removes it as
    the interpreter exits, which a worker of Ray never does: it is killed. Raises what `scratch_folder` raises.
    """
    with scratch_folder(what) as folder:
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


@contextlib.contextmanager
def locked_folder(base: str | None, prefix: str) -> Iterator[Path]:
    """A new folder in `base`, else in the temporary folder, which only this user can enter; removed after the block."""
    with contextlib.ExitStack() as stack:
        folder = _locked(base, prefix, stack)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _locked(base: str | None, prefix: str, stack: contextlib.ExitStack) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
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


def remove_leftovers(base: str | None = None, prefix: str = PREFIX) -> None:
    """Remove this user's folders in `base`, else in the temporary folder, that no process has locked."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(base or tempfile.gettempdir()):
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
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

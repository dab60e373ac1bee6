"""Temporary files of libraries, in a folder of ours that is removed after the work.

TensorFlow writes the source of each function that it converts to a file in the temporary folder and removes it as the
interpreter exits, which a worker of Ray never does: it is killed.
"""

import contextlib
import tempfile
from collections.abc import Iterator

from segtrain.storage.scratch import scratch_folder


@contextlib.contextmanager
def temporary_files_in_scratch(what: str) -> Iterator[None]:
    """Give Python another temporary folder for the block, in all threads of the process, and remove it afterwards.

    Raises what `scratch_folder` raises.
    """
    with scratch_folder(what) as folder:
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before

"""Temporary files that libraries make for themselves, in a folder of ours that goes with the work they are for.

TensorFlow writes the source of each function that it converts to a file in the temporary folder and removes it as the
interpreter exits, which a worker of Ray never does: it is killed.
"""

import contextlib
import tempfile
from collections.abc import Iterator

from segtrain.storage.scratch import scratch_folder


@contextlib.contextmanager
def temporary_files_in_scratch(what: str) -> Iterator[None]:
    """Inside the block Python's temporary folder is a new one, removed at its end; of a killed process, by the next.

    It holds for all threads of the process. Raises as `scratch_folder`.
    """
    with scratch_folder(what) as folder:
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before

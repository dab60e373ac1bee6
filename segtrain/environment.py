"""What TensorFlow reads from the environment while it is imported, set in the processes that train or predict."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"


def before_tensorflow(*, compute_threads: int | None = None) -> None:
    """Make ready for TensorFlow's import: Keras 3 whatever Ray has set, and oneDNN's kernels on CPUs.

    `compute_threads` bounds the threads that an operation is spread over; all cores with None.

    TensorFlow takes oneDNN by itself on a few CPUs only. Its own kernels lay out nine copies of a layer's input for the
    gradient of a 3x3 convolution: 2.7 GiB at 1918x1280 with 32 channels, and 25 % more CPU time a step at 96x128.
    `TF_ENABLE_ONEDNN_OPTS=0` in the environment keeps TensorFlow's own.
    """
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    os.environ.setdefault(ONEDNN, "1")
    if compute_threads is not None:
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(compute_threads)


@contextlib.contextmanager
def quiet_tensorflow_import() -> Iterator[None]:
    """Import TensorFlow inside the block, in a process whose stderr the user reads: its own lines do not get there.

    Some of them come whatever level it is told, so what the import writes is kept back, and shown where it fails.
    Afterwards only what ends the process is written; all else comes as exceptions. With `TF_CPP_MIN_LOG_LEVEL` in the
    environment nothing is kept back.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        try:
            os.dup2(kept.fileno(), 2)
            yield
        except BaseException:
            kept.seek(0)
            os.write(stderr, kept.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def onednn() -> bool:
    """Whether a process that `before_tensorflow` has made ready computes with oneDNN on a CPU."""
    return os.environ.get(ONEDNN, "1").lower() in ("1", "true")

"""What a process needs before it works: temporary files, environment, cores, freed memory, settings of TensorFlow."""

import contextlib
import ctypes
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from segtrain.errors import NoSpaceError, StorageError

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
NO_KERAS_HOME = os.path.join(os.devnull, "keras")
"""A folder that can neither exist nor be made. Keras accepts that silently."""

# From glibc's malloc.h; it takes no mmap threshold above 32 MiB.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
MIB = 2**20
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux mounts control groups, and the file that names those of this process."""
LEAST_TEMPORARY_BYTES = 16 * 2**20
"""Room for Ray's logs, or for a small network on its way to its place."""


def check_temporary_folder() -> None:
    """Raise StorageError where there is no folder for temporary files, or too little room in it.

    Python takes the first of TMPDIR, /tmp, /var/tmp and the working folder that a file can be written to.
    """
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:
        raise StorageError(
            "no temporary file can be written in TMPDIR, /tmp or /var/tmp; set TMPDIR to a folder that takes some"
        ) from None
    free = shutil.disk_usage(folder).free
    if free < LEAST_TEMPORARY_BYTES:
        raise NoSpaceError(
            f"{folder}, the folder for temporary files, has {free / 2**20:.1f} MiB left and "
            f"{LEAST_TEMPORARY_BYTES >> 20} MiB are needed; make room or set TMPDIR to another folder"
        )


@contextlib.contextmanager
def environment(*, replace: bool = False, **variables: str) -> Iterator[None]:
    """Set environment variables for the block. Those that are set already stay as they are, unless `replace`."""
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables if replace else {**variables, **before})
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)


def keras_as_the_recipe_says() -> None:
    """Make Keras, where it is imported later, run on TensorFlow and read none of the user's or the machine's settings.

    A run depends on its recipe and data alone. A `keras.json` could change the data format, the float type and epsilon,
    and where the home folder cannot be written to, Keras takes one in /tmp, which anybody may have put there. None is
    written either.
    """
    for name in ("TF_USE_LEGACY_KERAS", "KERAS_NNX_ENABLED"):
        os.environ.pop(name, None)
    os.environ.update(KERAS_BACKEND="tensorflow", KERAS_HOME=NO_KERAS_HOME)


def usable_cores() -> int:
    """Cores that this process can keep busy: those that it may run on, within the quota of its control groups.

    The machine may have more, which belong to other containers and jobs.
    """
    return math.ceil(min(_scheduled_cores(), _quota_cores(CGROUPS, OWN_CGROUPS)))


def share_of_cores(workers: int, cpus_per_worker: int) -> int:
    """Cores for one of `workers` on this machine: what each asked of Ray, or an equal share where that is 1.

    Ray asks for one CPU by default, and hands out numbers, not cores: it holds no process back.
    """
    cores = usable_cores()
    return min(cores, cpus_per_worker) if cpus_per_worker > 1 else max(1, cores // workers)


def _scheduled_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS binds no process to cores


def _quota_cores(root: Path, own: Path) -> float:
    """The smallest CPU quota of this process's control groups and those around them; infinite without one.

    Version 2 has one tree of groups with `cpu.max` ("quota period", in us). Version 1 has a tree for each controller,
    and two files. In a container the groups that `own` names may lie outside of what is mounted: then the mounted
    root is the container's own group.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux, or no /proc
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        trees = [root] if not controllers else [root / name for name in (controllers, "cpu")]
        for tree in trees:
            group = tree / path.lstrip("/")
            for folder in (group, *group.parents):
                quota = min(quota, _quota_of(folder))
                if folder == tree:
                    break
    return quota


def _quota_of(folder: Path) -> float:
    """CPU time a second of the group in a folder; infinite where it has no bound or is not there."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


def before_tensorflow(*, compute_threads: int | None = None) -> None:
    """Make ready for TensorFlow's import: Keras 3 whatever Ray has set, and oneDNN's kernels on CPUs.

    `compute_threads` bounds the threads that an operation is spread over. With None it is all cores, which TensorFlow
    counts itself; it does not know of a control group's quota, beyond which its threads would be held back.

    TensorFlow takes oneDNN by itself on a few CPUs only. Its own kernels lay out nine copies of a layer's input for the
    gradient of a 3x3 convolution: 2.7 GiB at 1918x1280 with 32 channels, and 25 % more CPU time a step at 96x128.
    `TF_ENABLE_ONEDNN_OPTS=0` in the environment keeps TensorFlow's own.
    """
    keras_as_the_recipe_says()
    os.environ.setdefault(ONEDNN, "1")
    # Kernels that a GPU newer than TensorFlow's build compiles are kept for the next process: NVIDIA's largest cache.
    os.environ.setdefault("CUDA_CACHE_MAXSIZE", str(4 * 2**30))
    # TensorFlow's guide to GPU performance: each GPU's kernels are started by threads of its own, and do not queue
    # behind the work of the host on the threads of all operations.
    os.environ.setdefault("TF_GPU_THREAD_MODE", "gpu_private")
    if compute_threads is not None:
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(compute_threads)
    elif usable_cores() < _scheduled_cores():
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(usable_cores()))


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


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for the next picture, as far as the C library can be told to.

    - Blocks stay. A decoded picture of 1918x1280 is 7 MB. By default glibc returns such a block to the kernel when it
      is freed, and the next one is faulted in page by page: a fifth of the processor time of reading pictures at that
      size. Both thresholds and padding are needed: without padding a thread's heap is given back whole.
    - One arena for all threads, because pictures are made in one thread and freed in another. With an arena for each
      thread, memory kept growing for 90 epochs (1.3 to 2.9 GB on crops, of which 0.3 GB were in use).

    Call it before threads are started; those that have an arena of their own keep it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return
    settings = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: 32 * MIB, M_TRIM_THRESHOLD: 512 * MIB, M_TOP_PAD: 64 * MIB}
    for option, value in settings.items():
        mallopt(option, value)

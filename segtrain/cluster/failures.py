"""How a worker's exception reaches the user, and whether another attempt may help. No Ray, no TensorFlow."""

import re
import traceback
from collections.abc import Mapping

from segtrain.errors import DataError, NoSpaceError, RunError, StorageError, UserError
from segtrain.runs.status import WHILE_SCORING

KNOWN_ERRORS = (UserError, DataError, StorageError, FileNotFoundError)

# What TensorFlow, XLA, CUDA, cuDNN, cuBLAS, cuSPARSE and NCCL say, in the words of TensorFlow 2.21's library. The
# class of the exception does not tell: a full disk is a ResourceExhaustedError too, and what cuDNN cannot allocate is
# a NotFoundError ("No algorithm worked!", alone where the algorithms had no scratch memory) or an InternalError.
_OUT_OF_MEMORY = re.compile(
    r"OOM when allocating|out of memory|Dst tensor is not initialized"
    r"|CU(DNN|BLAS|SPARSE)_STATUS_ALLOC_FAILED|CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
    r"|failed to allocate (request for|(the )?scratch|memory(?! for the batch)|.* from (device|NCCL|NVSHMEM))"
    r"|No algorithm worked!(?! +Error messages)",
    re.IGNORECASE,
)
_OF_THE_HOST = re.compile(r"device:CPU:\d+ by allocator|host_bfc|host memory", re.IGNORECASE)
_LONGEST_HEADLINE = 200
TOO_LITTLE_HOST_MEMORY = "its machine was running out of memory, and Ray ended it"
MORE_HOST_MEMORY = "run fewer workers on a machine, or lower data.cache_bytes or data.read_ahead_bytes"
"""What helps where a machine runs out of memory."""


class WorkerError(Exception):
    """A worker's own exception as text: to unpickle one of TensorFlow's would import TensorFlow."""

    def __init__(self, headline: str, trace: str, may_pass: bool) -> None:
        super().__init__(headline, trace, may_pass)
        self.headline = headline
        self.trace = trace
        self.may_pass = may_pass
        """Whether a new attempt may get further; an error of the code itself comes again."""

    def __str__(self) -> str:
        return self.headline

    @property
    def lost_a_peer(self) -> bool:
        """Whether it is TensorFlow's word for another worker that does not answer."""
        return self.headline.startswith("UnavailableError")


class DeviceMemoryError(WorkerError):
    """A device had too little memory. The same attempt fails again; one with a smaller batch may not.

    `headline` says which tensor did not fit.
    """

    def __init__(self, headline: str, trace: str, scoring: bool) -> None:
        super().__init__(headline, trace, may_pass=False)
        self.args = (headline, trace, scoring)  # what pickle hands to this constructor
        self.scoring = scoring
        """Whether validation pictures were being scored; else it was a step of training."""


class HostMemoryError(Exception):
    """Ray ended the process because its machine was running out of memory: another attempt may find more."""


class FrozenWorkerError(Exception):
    """A worker's process has not answered Ray within `cluster.stuck_after_s`: it is frozen, or its machine is."""


class WorkerBugError(RuntimeError):
    """A worker's exception that comes from the code; its text is the worker's own traceback."""

    def __init__(self, headline: str, trace: str) -> None:
        super().__init__(trace)
        self.headline = headline


def portable(error: Exception, *, gpus: bool = False) -> Exception:
    """The error in a form that can leave a worker: a known one as it is, any other as a `WorkerError`.

    `gpus` says that the worker's devices are GPUs. Then a lack of the host's memory is no `DeviceMemoryError`.
    """
    if isinstance(error, (WorkerError, *KNOWN_ERRORS)):
        return error
    if isinstance(error, WorkerBugError):
        return WorkerError(error.headline, str(error), may_pass=False)
    from_tensorflow = type(error).__module__.startswith("tensorflow.")
    trace = "".join(traceback.format_exception(error))
    shortage = device_shortage(str(error), gpus) if from_tensorflow else None
    if shortage is not None:
        return DeviceMemoryError(shortage, trace, scoring=WHILE_SCORING in getattr(error, "__notes__", ()))
    headline = f"{type(error).__name__}: {error}".split("\n")[0]
    return WorkerError(headline, trace, may_pass=isinstance(error, OSError | MemoryError | RunError) or from_tensorflow)


def device_shortage(message: str, gpus: bool) -> str | None:
    """The line of the message that tells what a device had no memory for; None where none does."""
    for line in message.splitlines():
        if _OUT_OF_MEMORY.search(line) and not (gpus and _OF_THE_HOST.search(line)):
            told = re.sub(r"{{.*?}} ?", "", line).partition(" on /job:")[0].partition(" [Op:")[0]
            return told.strip().rstrip(".")[:_LONGEST_HEADLINE]
    return None


def comes_again(cause: Exception) -> bool:
    """Whether a new attempt would end in the same error. A dead process and a fault of storage may not come again."""
    if isinstance(cause, WorkerError):
        return not cause.may_pass
    return isinstance(cause, NoSpaceError) or (isinstance(cause, KNOWN_ERRORS) and not isinstance(cause, StorageError))


def what_happened(causes: Mapping[int, Exception], workers: int = 1, stuck: Mapping[int, str] | None = None) -> str:
    """One clause on those of `workers` workers that failed. Where some died, the others' errors only follow from that.

    `stuck` says of ranks what their watchdogs, or those of the others, have found: all else follows from that. So it
    does from a frozen worker, which Ray may notice before any watchdog speaks. Where TensorFlow has only lost a peer,
    it is the workers without an error of their own that give no answer.
    """
    if stuck:
        return "; ".join(f"worker {rank} {found}" for rank, found in sorted(stuck.items()))
    silent = [rank for rank, cause in causes.items() if isinstance(cause, FrozenWorkerError)]
    if all(isinstance(cause, WorkerError) and cause.lost_a_peer for cause in causes.values()):
        silent = [rank for rank in range(workers) if rank not in causes]
    if silent:
        return f"worker {', '.join(map(str, sorted(silent)))} gives no answer"
    ended = sorted(rank for rank, cause in causes.items() if isinstance(cause, HostMemoryError))
    if ended:
        return f"worker {', '.join(map(str, ended))} failed ({TOO_LITTLE_HOST_MEMORY})"
    lost = [rank for rank, cause in causes.items() if not isinstance(cause, (WorkerError, *KNOWN_ERRORS))]
    if lost:
        return f"worker {', '.join(map(str, sorted(lost)))} lost"
    rank, cause = min(causes.items())
    return f"worker {rank} failed ({cause})"

"""How a worker's exception travels to the user, and whether another attempt may get further. No Ray, no TensorFlow."""

import traceback

from segtrain.errors import DataError, StorageError, UserError

KNOWN_ERRORS = (UserError, DataError, StorageError, FileNotFoundError)


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


def portable(error: Exception) -> Exception:
    """The error as it may leave a worker: the known ones as they are, any other as a `WorkerError`."""
    if isinstance(error, KNOWN_ERRORS):
        return error
    may_pass = isinstance(error, OSError | MemoryError) or type(error).__module__.startswith("tensorflow.")
    headline = f"{type(error).__name__}: {error}".split("\n")[0]
    return WorkerError(headline, "".join(traceback.format_exception(error)), may_pass)


def comes_again(cause: Exception) -> bool:
    """Whether a new attempt would end in the same error. A dead process and a fault of storage may not come again."""
    if isinstance(cause, WorkerError):
        return not cause.may_pass
    return isinstance(cause, KNOWN_ERRORS) and not isinstance(cause, StorageError)


def what_happened(causes: dict[int, Exception]) -> str:
    """One clause on the workers that failed; where some died, the others' errors only follow from that."""
    lost = [rank for rank, cause in causes.items() if not isinstance(cause, (WorkerError, *KNOWN_ERRORS))]
    if lost:
        return f"worker {', '.join(map(str, sorted(lost)))} lost"
    rank, cause = min(causes.items())
    return f"worker {rank} failed ({cause})"

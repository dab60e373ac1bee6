"""How a worker's exception travels to the driver, without Ray's help."""

import pickle

import pytest
from ray.exceptions import ActorDiedError

from segtrain.errors import DataError, StorageError, UserError
from segtrain.failures import WorkerError, comes_again, portable, what_happened


def pickled(error: Exception) -> Exception:
    copy: Exception = pickle.loads(pickle.dumps(error))
    return copy


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (UserError("data.x: mend it"), True),
        (DataError("row group 3 of part-1 is damaged"), True),
        (FileNotFoundError(2, "No such file", "s3://bucket/key"), True),
        (KeyError("a bug"), True),
        (StorageError("s3://bucket/key: no answer in 120 s"), False),
        (ConnectionResetError("peer"), False),
        (MemoryError(), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, again: bool) -> None:
    assert comes_again(pickled(portable(error))) == again


def test_a_dead_process_is_tried_again() -> None:
    assert not comes_again(ActorDiedError())


def test_an_unknown_error_keeps_its_traceback_and_its_first_line() -> None:
    try:
        {}["no such key"]
    except KeyError as error:
        told = pickled(portable(error))
    assert isinstance(told, WorkerError)
    assert str(told) == "KeyError: 'no such key'"
    assert "test_failures.py" in told.trace


def test_peers_of_a_dead_worker_are_not_blamed() -> None:
    peer = WorkerError("UnavailableError: Socket closed", "trace", True)
    assert what_happened({0: peer, 2: ActorDiedError(), 1: ActorDiedError()}) == "worker 1, 2 lost"
    assert what_happened({1: peer}) == "worker 1 failed (UnavailableError: Socket closed)"

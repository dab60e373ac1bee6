"""What Ray Tune tells of a failed trial, in a line."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError, OutOfMemoryError

from segtrain.tune.callback import failure_of


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ActorDiedError(), "its process was lost"),
        (
            OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node was 15.1 GB"),
            "its machine was running out of memory, and Ray ended it; run fewer workers on a machine, or lower "
            "data.cache_bytes or data.read_ahead_bytes",
        ),
        (ValueError("no such thing\nnor such"), "ValueError: no such thing"),
    ],
)
def test_a_failure_is_one_line(tmp_path: Path, error: Exception, told: str) -> None:
    (tmp_path / "error.pkl").write_bytes(cloudpickle.dumps(error))
    assert failure_of(SimpleNamespace(pickled_error_file=str(tmp_path / "error.pkl"))) == told

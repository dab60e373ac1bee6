"""How a worker's exception travels to the driver, without Ray's help."""

import pickle

import pytest
from ray.exceptions import ActorDiedError

from segtrain.cluster.failures import (
    DeviceMemoryError,
    FrozenWorkerError,
    WorkerError,
    comes_again,
    portable,
    what_happened,
)
from segtrain.errors import DataError, NoSpaceError, StorageError, UserError
from segtrain.runs.status import WHILE_SCORING

ON_GPU = "on /job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc [Op:Conv2D]"
ON_HOST = "on /job:localhost/replica:0/task:0/device:CPU:0 by allocator cpu [Op:Empty]"


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
        (NoSpaceError("/data/masks: No space left on device"), True),
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
    assert what_happened({0: peer, 2: ActorDiedError(), 1: ActorDiedError()}, 3) == "worker 1, 2 lost"


def test_what_the_watchdogs_found_says_more_than_the_errors_that_follow_from_it() -> None:
    lost: dict[int, Exception] = {0: RuntimeError("its process died"), 1: RuntimeError("its process died")}
    assert what_happened(lost, 2, {1: "gives no answer"}) == "worker 1 gives no answer"
    assert what_happened(lost, 2) == "worker 0, 1 lost"


def test_where_tensorflow_has_only_lost_a_peer_it_is_the_silent_worker_that_is_named() -> None:
    peer = WorkerError("UnavailableError: Graph execution error:", "trace", True)
    assert what_happened({0: peer, 2: peer}, 3) == "worker 1 gives no answer"
    assert what_happened({0: peer}) == "worker 0 failed (UnavailableError: Graph execution error:)"


def test_what_befalls_the_others_of_a_frozen_worker_follows_from_that() -> None:
    frozen = pickled(FrozenWorkerError())
    assert what_happened({0: ActorDiedError(), 2: frozen, 1: frozen}, 3) == "worker 1, 2 gives no answer"


def of_tensorflow(message: str) -> Exception:
    """An error that TensorFlow could raise; `tests/launch/test_out_of_memory.py` has those of a CPU."""
    kind = type("ResourceExhaustedError", (Exception,), {"__module__": "tensorflow.python.framework.errors_impl"})
    error: Exception = kind(message)
    return error


@pytest.mark.parametrize(
    ("message", "headline"),
    [
        (
            f"Graph execution error:\n\nDetected at node Conv2D\nOOM when allocating tensor with shape[8,64] {ON_GPU}",
            "OOM when allocating tensor with shape[8,64]",
        ),
        ("Out of memory while trying to allocate 2.00GiB. [Op:__inference_h_97]", None),
        (
            "No algorithm worked!  Error messages:\n  Profiling failure on CUDNN engine eng0{}: UNKNOWN: "
            "CUDNN_STATUS_ALLOC_FAILED",
            "Profiling failure on CUDNN engine eng0{}: UNKNOWN: CUDNN_STATUS_ALLOC_FAILED",
        ),
        ("failed to allocate 8.41G (9029127168 bytes) from device: CUDA_ERROR_OUT_OF_MEMORY: out of memory", None),
        (
            "Failed copying input tensor from CPU:0 to GPU:0 in order to run Identity: Dst tensor is not initialized.",
            None,
        ),
        (f"Collective ops is aborted by: OOM when allocating tensor with shape[8] {ON_GPU}", None),
        ("{{function_node __wrapped__Mul}} failed to allocate memory [Op:Mul]", "failed to allocate memory"),
        ("No algorithm worked!\n\t [[{{node unet/down0_conv1/convolution}}]]", "No algorithm worked!"),
        ("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED in cudnn_graph.execute", None),
        ("Failed to allocate scratch memory of 1073741824 bytes", None),
        ("CUDNN failed to allocate the scratch space for the runner or to find a working no-scratch runner.", None),
        ("CUSPARSE_STATUS_ALLOC_FAILED", None),
        ("CUBLAS_STATUS_ALLOC_FAILED while creating a handle", None),
        ("Failed to allocate request for 2.00GiB (2147483648B) on device ordinal 0", None),
        ("Failed to allocate 64.00MiB (67108864 bytes) from NCCL: unhandled cuda error.", None),
    ],
)
def test_a_device_out_of_memory_is_known_by_its_message(message: str, headline: str | None) -> None:
    told = pickled(portable(of_tensorflow(message), gpus=True))
    assert isinstance(told, DeviceMemoryError)
    assert comes_again(told)
    assert not told.scoring
    if headline is not None:
        assert told.headline == headline


@pytest.mark.parametrize(
    ("error", "gpus"),
    [
        (MemoryError("out of memory"), False),
        (OSError(12, "Cannot allocate memory: out of memory"), False),
        (of_tensorflow("/dev/full; No space left on device [Op:WriteFile]"), False),
        (of_tensorflow("received message larger than max (5 vs. 4)"), False),
        (of_tensorflow("/shards/a; Disk quota exceeded [Op:WriteFile]"), True),
        (of_tensorflow("/shards/a; Too many open files [Op:ReadFile]"), True),
        (of_tensorflow(f"OOM when allocating tensor with shape[8] {ON_HOST}"), True),
        (of_tensorflow("Failed to allocate host memory for transfer buffer: out of memory"), True),
        (of_tensorflow("CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), True),
        (of_tensorflow("Failed to allocate memory for the batch of component 0"), True),
        (of_tensorflow("No algorithm worked!  Error messages:\n  CUDNN_STATUS_NOT_SUPPORTED"), True),
    ],
    ids=[
        *("numpy", "system", "full disk", "large message", "quota", "open files", "host beside GPUs"),
        *("buffer of the host", "cuDNN's host memory", "batch of the host", "algorithms that do not fit"),
    ],
)
def test_other_shortages_are_none_of_a_devices_memory(error: Exception, gpus: bool) -> None:
    told = pickled(portable(error, gpus=gpus))
    assert type(told) is WorkerError
    assert not comes_again(told)


def test_on_a_cpu_the_hosts_memory_is_the_devices() -> None:
    assert isinstance(portable(of_tensorflow(f"OOM when allocating tensor with shape[8] {ON_HOST}")), DeviceMemoryError)


def test_an_error_in_scoring_is_told_from_one_in_training() -> None:
    error = of_tensorflow(f"OOM when allocating tensor with shape[8] {ON_GPU}")
    error.add_note(WHILE_SCORING)
    told = pickled(portable(error))
    assert isinstance(told, DeviceMemoryError)
    assert told.scoring

"""From rank facts to a `tf.distribute` strategy, and batches onto its replicas."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy as collective
from tensorflow.python.distribute import collective_util

from segtrain.errors import UserError
from segtrain.process import keep_freed_memory
from segtrain.runs.status import World
from segtrain.training.collective_keys import share_keys

log = logging.getLogger(__name__)


def configure_process(world: World, *, deterministic: bool, seed: int, tf32: bool) -> None:
    """Set devices, seeds, determinism, and how exact float32 is on GPUs.

    It must come before anything else touches TensorFlow in this process, but for a caller who divides a card into
    logical GPUs: `world.gpus_per_worker` counts cards, `world.replicas_per_worker` what they are divided into.

    Raises UserError where TensorFlow sees another number of GPUs than was asked for. Without this check a run with a
    missing driver would train on the CPU, and say nothing.
    """
    keep_freed_memory()
    gpus = tf.config.list_physical_devices("GPU")
    if world.gpu_positions is not None:
        # The others stay visible to NCCL.
        gpus = [gpus[position] for position in world.gpu_positions if position < len(gpus)]
    if len(gpus) != world.gpus_per_worker and world.gpus_per_worker:
        raise UserError(
            f"cluster.gpus_per_worker is {world.gpus_per_worker} but TensorFlow sees {len(gpus)} GPUs on this node; "
            f"check the driver and CUDA libraries (pip install -e '.[gpu]')"
        )
    if world.gpus_per_worker:
        tf.config.set_visible_devices(gpus, "GPU")
        for gpu in gpus:
            # A card that the caller has divided into logical GPUs has a limit of memory for each, and cannot grow.
            if not tf.config.get_logical_device_configuration(gpu):
                tf.config.experimental.set_memory_growth(gpu, True)
    else:
        tf.config.set_visible_devices([], "GPU")
        cpu = tf.config.list_physical_devices("CPU")[0]
        if len(tf.config.get_logical_device_configuration(cpu) or [None]) < world.replicas_per_worker:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * world.replicas_per_worker
            )
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def build_strategy(world: World) -> tf.distribute.Strategy:
    """`MirroredStrategy` over one worker's replicas, `MultiWorkerMirroredStrategy` over those of several."""
    if world.workers > 1:
        strategy = _LogicalCpuWorkers(world.replicas_per_worker) if not world.gpus_per_worker else _gpu_workers()
    else:
        kind = "GPU" if world.gpus_per_worker else "CPU"
        strategy = tf.distribute.MirroredStrategy([f"{kind}:{index}" for index in range(world.replicas_per_worker)])
    if strategy.num_replicas_in_sync != world.replicas:
        raise AssertionError(f"{strategy.num_replicas_in_sync} replicas in sync, expected {world.replicas}")
    share_keys(strategy)
    return strategy


def _gpu_workers() -> tf.distribute.Strategy:
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation.NCCL
    )
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


class _CpuExtended(collective.CollectiveAllReduceExtended):
    """TensorFlow gives a worker without GPUs one replica; this gives it one for each logical CPU device."""

    def __init__(self, strategy: tf.distribute.Strategy, replicas: int) -> None:
        self._replicas = replicas
        super().__init__(strategy, cluster_resolver=None, communication_options=collective_util.Options())

    def _initialize_local_devices(self, cluster_resolver: Any, worker_device: str) -> tuple[tuple[str, ...], str]:
        return tuple(f"{worker_device}/device:CPU:{index}" for index in range(self._replicas)), "CPU"


class _LogicalCpuWorkers(tf.distribute.MultiWorkerMirroredStrategy):
    """Several workers, each with several logical CPU devices: the arithmetic of a GPU cluster without GPUs."""

    def __init__(self, replicas_per_worker: int) -> None:
        # The parent's own constructor would build the parent's extended.
        tf.distribute.Strategy.__init__(self, _CpuExtended(self, replicas_per_worker))


def place(strategy: tf.distribute.Strategy, replicas: Sequence[Any]) -> Any:
    """This worker's batches, one structure of tensors a local replica, copied to the devices as a per-replica value."""
    placed = []
    for device, batch in zip(strategy.extended.worker_devices, replicas, strict=True):
        with tf.device(device):
            placed.append(tf.nest.map_structure(tf.identity, batch))
    return strategy.experimental_distribute_values_from_function(
        lambda context: placed[context.replica_id_in_sync_group % len(placed)]
    )


def sum_over_replicas(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """On one replica: the sum of all replicas' tensors, on each of them."""
    return list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors))


def local_array(strategy: tf.distribute.Strategy, value: Any) -> np.ndarray:
    """This worker's first copy of a mirrored variable or of a value that is equal on all replicas."""
    return np.asarray(strategy.experimental_local_results(value)[0].numpy())


def sum_over_workers(strategy: tf.distribute.Strategy, table: np.ndarray) -> np.ndarray:
    """The elementwise sum of every worker's float64 array, on every worker. A collective: all workers must call it."""
    return summing_over_workers(strategy)(table)


def summing_over_workers(strategy: tf.distribute.Strategy) -> Callable[[np.ndarray], np.ndarray]:
    """A `sum_over_workers` for many calls with arrays of one shape, because it is traced only once."""
    local = len(strategy.extended.worker_devices)
    if strategy.num_replicas_in_sync == local:
        return lambda table: table

    @tf.function(autograph=False)
    def add(value: Any) -> Any:
        # An argument has no device yet, which the reduction asks for; what an operation returns has one.
        return strategy.run(lambda part: sum_over_replicas([tf.identity(part)])[0], args=(value,))

    def over_workers(table: np.ndarray) -> np.ndarray:
        parts = [tf.constant(table)] + [tf.zeros_like(table)] * (local - 1)
        return local_array(strategy, add(place(strategy, parts)))

    return over_workers

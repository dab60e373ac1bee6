"""The one device that a process which applies networks has: a GPU that Ray gave it, or the CPU."""

import tensorflow as tf

from segtrain.config import ClusterConfig
from segtrain.errors import UserError
from segtrain.process import keep_freed_memory


def configure_device(asked: ClusterConfig) -> None:
    """Prepare this process; before anything else touches TensorFlow in it.

    Raises UserError where a GPU was asked for and TensorFlow sees none: a missing driver would silently leave the work
    to the CPU.
    """
    keep_freed_memory()
    if asked.gpus_per_worker == 0:
        tf.config.set_visible_devices([], "GPU")
    elif not tf.config.list_physical_devices("GPU"):
        raise UserError(
            f"cluster.gpus_per_worker is {asked.gpus_per_worker} but TensorFlow sees no GPU on this node; check the "
            f"driver and CUDA libraries (pip install -e '.[gpu]')"
        )

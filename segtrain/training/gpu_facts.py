"""What TensorFlow knows of this worker's GPUs, as a line for the log."""

import logging

import tensorflow as tf

from segtrain.gpu_driver import BUILT_FOR, Card, cards_line, driver_warning, machines_driver
from segtrain.runs.status import World

log = logging.getLogger(__name__)


def name_gpus(world: World) -> str | None:
    """The worker's GPUs with compute capability and driver; None without GPUs. Warns of a driver that is too old."""
    if not world.gpus_per_worker:
        return None
    gpus = tf.config.list_physical_devices("GPU")
    own = [gpu for position, gpu in enumerate(gpus) if world.gpu_positions is None or position in world.gpu_positions]
    details = [tf.config.experimental.get_device_details(gpu) for gpu in own]
    cards = [Card(known.get("device_name", "GPU"), known.get("compute_capability", (0, 0))) for known in details]
    built_for = tf.sysconfig.get_build_info().get("cuda_compute_capabilities", BUILT_FOR)
    driver = machines_driver()
    warning = driver_warning(cards, driver, built_for)
    if warning is not None:
        log.warning("%s", warning)
    return cards_line(cards, driver, built_for) if cards else None

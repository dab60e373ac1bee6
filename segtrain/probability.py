"""From logits to probabilities at a picture's own size: training scores by it, and inference writes by it."""

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray


def upsample_probability(logits: NDArray[np.floating], height: int, width: int) -> NDArray[np.float32]:
    """Logits (h, w, 1) to probabilities float32 (height, width): bilinear on the logits, then the sigmoid.

    The logits are smooth across an edge where the probabilities are a step, so their interpolation places the
    boundary between pixels more exactly. It works on the host, and in any thread.
    """
    with tf.device("/CPU:0"):
        resized = tf.image.resize(tf.cast(logits, tf.float32), (height, width), method="bilinear")
        probability: NDArray[np.float32] = tf.sigmoid(resized[..., 0]).numpy()
    return probability

"""The keys by which replicas find each other in a sum: drawn for a whole step, and handed to each device at once.

TensorFlow feeds a key of its own to each sum of a compiled step. At depth 4 these are 37 numbers a replica, each of
which the host makes into a tensor and sends to the device.
"""

from typing import Any
from weakref import WeakKeyDictionary

import tensorflow as tf


def share_keys(strategy: tf.distribute.Strategy) -> None:
    """Give each device of the strategy the keys of a compiled step as one vector.

    The keys are those that TensorFlow would draw, in the same order, so all workers have to call this or none.
    """
    for launcher in strategy.extended._cross_device_ops._launchers:
        launcher._next_instance_key = _StepKeys(launcher)


class _StepKeys:
    """Takes the place of a launcher's `_next_instance_key`; call it for the next key, an int32 scalar."""

    def __init__(self, launcher: Any) -> None:
        self._launcher = launcher
        self._drawn: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        """Keys that each graph has asked for."""

    def __call__(self) -> tf.Tensor:
        if tf.executing_eagerly():
            return self._vector(1)[0]
        graph = _function_graph()
        index = self._drawn.get(graph, 0)
        self._drawn[graph] = index + 1
        with graph.as_default():
            # The number of keys is read when the step is called: by then its graph is whole.
            keys = graph.capture_call_time_value(
                lambda: self._vector(self._drawn[graph]), tf.TensorSpec([None], tf.int32), key=self
            )
        return keys[index]

    def _vector(self, count: int) -> tf.Tensor:
        launcher = self._launcher
        draw = launcher._collective_keys.get_instance_key
        with tf.device("/CPU:0"):
            return tf.constant([draw(launcher._group_key, launcher._device) for _ in range(count)], tf.int32)


def _function_graph() -> Any:
    """The graph of the compiled function that is being traced, outside its conditions and loops."""
    graph: Any = tf.compat.v1.get_default_graph()
    while getattr(graph, "is_control_flow_graph", False):
        graph = graph.outer_graph
    return graph

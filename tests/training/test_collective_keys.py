"""Keys of sums over replicas."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from segtrain.training.collective_keys import share_keys


class Keys:
    """Counts up, as TensorFlow's own keys do for each device."""

    def __init__(self) -> None:
        self.drawn = 0

    def get_instance_key(self, group_key: int, device: str) -> int:
        assert (group_key, device) == (7, "CPU:0")
        self.drawn += 1
        return self.drawn


@pytest.fixture
def launcher() -> SimpleNamespace:
    """What TensorFlow has for each device of a strategy, with keys of its own."""
    launcher = SimpleNamespace(_collective_keys=Keys(), _group_key=7, _device="CPU:0")
    share_keys(SimpleNamespace(extended=SimpleNamespace(_cross_device_ops=SimpleNamespace(_launchers=[launcher]))))
    return launcher


def test_each_call_of_a_compiled_function_gets_new_keys_in_order(launcher: SimpleNamespace) -> None:
    keys = launcher._next_instance_key
    two = tf.function(lambda: tf.stack([keys(), keys()]), autograph=False)
    three = tf.function(lambda: tf.stack([keys(), keys(), keys()]), autograph=False)
    found = [two(), three(), keys(), two()]
    assert np.concatenate([np.ravel(each) for each in found]).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_keys_within_a_condition_are_those_of_the_whole_function(launcher: SimpleNamespace) -> None:
    keys = launcher._next_instance_key

    @tf.function(autograph=False)
    def conditional(wanted: tf.Tensor) -> tf.Tensor:
        first = keys()
        return tf.stack([first, tf.cond(wanted, keys, lambda: tf.constant(0))])

    assert conditional(tf.constant(True)).numpy().tolist() == [1, 2]
    assert conditional(tf.constant(False)).numpy().tolist() == [3, 0]


def test_a_compiled_function_within_another_gets_its_keys_at_each_call(launcher: SimpleNamespace) -> None:
    inner = tf.function(launcher._next_instance_key, autograph=False)
    outer = tf.function(lambda: inner() * 10, autograph=False)
    assert [int(outer()) for _ in range(3)] == [10, 20, 30]

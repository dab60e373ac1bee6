"""Batch norm against Keras's own, with padding, under accumulation, and over replicas."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from segtrain.models.batch_norm import BatchNorm
from segtrain.models.step_context import forward_pass

SHAPE = (4, 5, 6, 3)


@pytest.fixture
def x():
    return tf.constant(np.random.default_rng(0).normal(2.0, 3.0, SHAPE))


def open_pass(weights, update_statistics=True):
    weights = tf.constant(weights, tf.float64)
    keys = tf.range(len(weights), dtype=tf.int64)
    return forward_pass(step=tf.constant(0, tf.int64), keys=keys, weights=weights, update_statistics=update_statistics)


def built(layer, seed=1):
    """The layer with a gamma and beta that are not the identity."""
    layer.build(SHAPE)
    random = np.random.default_rng(seed)
    layer.gamma.assign(random.normal(1.0, 0.3, SHAPE[-1]))
    layer.beta.assign(random.normal(0.0, 0.3, SHAPE[-1]))
    return layer


def outcome(layer, x, weights=None):
    """Output, gradients of a curved loss with respect to x, gamma and beta, and the moving statistics after it."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        loss = tf.reduce_sum(tf.sin(y) * y * (1.0 if weights is None else tf.reshape(weights, (-1, 1, 1, 1))))
    gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
    return [y, *gradients, layer.moving_mean.value, layer.moving_variance.value]


@pytest.mark.parametrize("synchronized", [True, False])
@pytest.mark.parametrize("run", [lambda f: f, tf.function], ids=["eager", "compiled"])
def test_on_one_replica_it_is_keras_batch_normalization(x, synchronized, run):
    ours = built(BatchNorm(synchronized, momentum=0.9, dtype="float64"))
    keras_layer = built(keras.layers.BatchNormalization(momentum=0.9, dtype="float64"))
    results = run(lambda x: outcome(ours, x))(x), run(lambda x: outcome(keras_layer, x))(x)
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(ours(x), keras_layer(x), rtol=1e-12)


def test_samples_of_weight_0_do_not_count(x):
    weights = tf.constant([1.0, 0.0, 1.0, 1.0], tf.float64)
    with_padding, alone = (built(BatchNorm(dtype="float64")) for _ in range(2))
    with open_pass([1, 0, 1, 1]):
        got = outcome(with_padding, x, weights)
    expected = outcome(alone, tf.gather(x, [0, 2, 3]))
    for index in (0, 1):  # output and gradient with respect to the input
        np.testing.assert_allclose(tf.gather(got[index], [0, 2, 3]), expected[index], rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(got[1][1], 0.0)
    for a, b in zip(got[2:], expected[2:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_a_batch_of_padding_alone_leaves_the_moving_statistics_alone(x):
    layer = built(BatchNorm(momentum=0.5, dtype="float64"))
    with open_pass([0, 0, 0, 0]):
        got = outcome(layer, x)
    assert all(np.isfinite(value).all() for value in got)
    np.testing.assert_array_equal(layer.moving_mean, 0.0)
    np.testing.assert_array_equal(layer.moving_variance, 1.0)


def test_a_pass_can_leave_the_moving_statistics_alone(x):
    layer = built(BatchNorm(momentum=0.5, dtype="float64"))
    with open_pass([1, 1, 1, 1], update_statistics=False):
        layer(x, training=True)
    np.testing.assert_array_equal(layer.moving_mean, 0.0)
    with open_pass([1, 1, 1, 1]):
        layer(x, training=True)
    np.testing.assert_allclose(layer.moving_mean, 0.5 * np.mean(x, (0, 1, 2)))
    np.testing.assert_allclose(layer.moving_variance, 0.5 + 0.5 * np.var(x, (0, 1, 2)))


def test_a_constant_channel_far_from_zero_stays_finite():
    layer = built(BatchNorm())
    got = outcome(layer, tf.fill(SHAPE, 1000.1))
    assert all(np.isfinite(value).all() for value in got)
    assert (np.asarray(layer.moving_variance) >= 0).all()


def test_half_precision_adds_up_in_float32():
    # 2.5 million values of 3.0 overflow float16 (65,504), as does the sum of their gradients.
    x = tf.fill((1, 1280, 1918, 1), tf.constant(3.0, tf.float16))
    layer = BatchNorm(momentum=0.0, dtype="mixed_float16")
    with tf.GradientTape() as tape:
        y = layer(x, training=True)
        loss = tf.reduce_sum(tf.cast(y, tf.float32))
    assert y.dtype == tf.float16
    assert np.asarray(layer.moving_mean) == pytest.approx(3.0)
    assert np.asarray(tape.gradient(loss, layer.beta.value)) == pytest.approx(1280 * 1918)


ON_REPLICAS = """
import json
import numpy as np, tensorflow as tf
from segtrain.models.batch_norm import BatchNorm
from segtrain.models.dropout import Dropout
from segtrain.models.step_context import forward_pass

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
pictures = tf.constant(np.random.default_rng(0).normal(2.0, 3.0, (4, 5, 6, 3)))
weights, keys = tf.constant([1.0, 0.0, 1.0, 1.0], tf.float64), tf.constant([7, 8, 9, 10], tf.int64)

def outcome(strategy, synchronized):
    replicas = strategy.num_replicas_in_sync
    local = strategy.experimental_local_results
    with strategy.scope():
        layers = [BatchNorm(synchronized, momentum=0.9, dtype="float64") for _ in range(2)]
        for layer in layers:
            layer.build(pictures.shape)
    dropout = Dropout(0.5, 3, 1, dtype="float64")
    variables = [variable.value for layer in layers for variable in layer.trainable_variables]

    def share(value):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.split(value, replicas)[context.replica_id_in_sync_group])

    def on_replica(x, w, k):
        with forward_pass(step=tf.constant(5, tf.int64), keys=k, weights=w), tf.GradientTape() as tape:
            tape.watch(x)
            y = layers[1](dropout(tf.sin(layers[0](x, training=True)), training=True), training=True)
            loss = tf.reduce_sum(tf.sin(y) * y * w[:, None, None, None])
            of_x, *gradients = tape.gradient(loss, [x, *variables])
        return y, of_x, tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)

    step = tf.function(lambda *batch: strategy.run(on_replica, args=batch))
    y, of_x, gradients = step(share(pictures), share(weights), share(keys))
    result = [np.concatenate([v.numpy() for v in local(value)]) for value in (y, of_x)]
    result += [local(gradient)[0].numpy() for gradient in gradients]
    for layer in layers:
        for moving in (layer.moving_mean, layer.moving_variance):
            copies = [v.numpy() for v in local(moving.value)]
            assert not synchronized or all((copy == copies[0]).all() for copy in copies)
            result.append(copies[0])
    return [value.tolist() for value in result]

# One strategy for both: collectives of two strategies over the same devices would share their keys.
one, two = tf.distribute.MirroredStrategy(["CPU:0"]), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print(json.dumps([outcome(one, True), outcome(two, True), outcome(two, False)]))
"""


def test_two_replicas_equal_one_if_synchronized_and_only_then():
    # In a process of its own: logical devices are set before TensorFlow starts.
    command = [sys.executable, "-c", ON_REPLICAS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two, apart = json.loads(done.stdout)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    assert np.abs(np.subtract(one[0], apart[0])).max() > 0.01

"""A network that computes its activations again on the way back learns what the plain one learns."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from segtrain.config import FCNConfig, UNetConfig
from segtrain.errors import UserError
from segtrain.models import build_model
from segtrain.models.layers import JoinedConv2D
from segtrain.models.step_context import forward_pass

NETWORKS = {
    "batch norm, dropout": UNetConfig(filters=4, depth=2, dropout=(0.3, 0.2, 0.4), norm="batch"),
    "one convolution": UNetConfig(filters=4, depth=1, convolutions=1, up="transpose_2x2"),
    "residual": UNetConfig(
        filters=4, depth=2, residual=True, norm="group", norm_groups=2, down="strided", up="resize", dropout=0.1
    ),
    "three convolutions": UNetConfig(filters=4, depth=1, convolutions=3, dropout=0.5),
}
each_network = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())


def learned(model, *, compiled=True):
    """Loss, gradients and, after the step, the variables that are not trained."""
    random = np.random.default_rng(0)
    pictures = tf.constant(random.random((2, 13, 22, 3)), model.dtype)
    wanted = tf.constant(random.random((2, 13, 22, 1)))

    def step():
        with (
            tf.GradientTape() as tape,
            forward_pass(
                step=tf.constant(3, tf.int64), keys=tf.constant([5, 6], tf.int64), weights=tf.constant([1.0, 0.0])
            ),
        ):
            error = tf.cast(model(pictures, training=True), tf.float64) - wanted
            # A picture of weight 0 is no part of a loss.
            loss = tf.reduce_mean(tf.square(error[:1]))
            return loss, tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    loss, gradients = (tf.function(step) if compiled else step)()
    return [loss, *gradients, *(variable.value for variable in model.non_trainable_variables)]


@each_network
def test_its_variables_are_the_plain_networks_in_the_same_order(config):
    plain, again = build_model(config, seed=4), build_model(config, seed=4, rematerialize=True)
    assert [variable.path for variable in again.variables] == [variable.path for variable in plain.variables]
    for mine, other in zip(again.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize(
    ("name", "policy"), [*((name, "float32") for name in NETWORKS), ("batch norm, dropout", "float64")]
)
def test_gradients_are_equal_and_moving_statistics_move_once(name, policy):
    config = NETWORKS[name]
    plain, again = (build_model(config, dtype_policy=policy, rematerialize=flag) for flag in (False, True))
    before = [variable.numpy() for variable in again.non_trainable_variables]
    atol = 1e-5 if policy == "float32" else 1e-12
    for mine, other in zip(learned(again), learned(plain), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=atol)
    moved = [variable.numpy() for variable in again.non_trainable_variables]
    assert all(np.abs(new - old).max() > 1e-4 for old, new in zip(before, moved, strict=True))


def test_it_works_outside_of_a_compiled_function_too():
    config = NETWORKS["batch norm, dropout"]
    plain, again = (build_model(config, rematerialize=flag) for flag in (False, True))
    for mine, other in zip(learned(again, compiled=False), learned(plain), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", [pytest.param("mixed_bfloat16", marks=pytest.mark.slow), "mixed_float16"])
def test_under_mixed_precision_it_stays_as_near_to_float32_as_the_plain_network(policy):
    config = NETWORKS["batch norm, dropout"]
    exact = learned(build_model(config))
    plain, again = (learned(build_model(config, dtype_policy=policy, rematerialize=flag)) for flag in (False, True))
    for mine, other, wide in zip(again, plain, exact, strict=True):
        rounding = np.abs(np.asarray(other, np.float64) - wide).max()
        assert np.abs(np.asarray(mine, np.float64) - wide).max() <= 2 * rounding + 1e-3


def test_it_predicts_what_the_plain_network_predicts():
    plain, again = (build_model(NETWORKS["residual"], rematerialize=flag) for flag in (False, True))
    pictures = np.random.default_rng(1).random((1, 20, 9, 3), np.float32)
    np.testing.assert_allclose(again(pictures), plain(pictures), atol=1e-6)


def test_the_second_pass_is_a_computation_of_its_own():
    # Else nothing is saved: TensorFlow would keep what the first pass made and use it again.
    def convolutions(rematerialize):
        model = build_model(UNetConfig(filters=2, depth=1), rematerialize=rematerialize)

        @tf.function
        def step(pictures):
            keys, weights = tf.constant([1], tf.int64), tf.ones(1)
            with (
                tf.GradientTape() as tape,
                forward_pass(step=tf.constant(0, tf.int64), keys=keys, weights=weights),
            ):
                loss = tf.reduce_sum(model(pictures, training=True))
            return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

        graph = step.get_concrete_function(tf.TensorSpec((1, 8, 8, 3)))
        optimized = tf.config.optimizer.get_experimental_options()
        assert not optimized.get("disable_meta_optimizer", False)
        return sum(node.type == "Conv2D" for node in graph.graph.get_operations())

    assert convolutions(True) >= 2 * convolutions(False) - 2  # the head is not computed again


def test_an_fcn_is_refused():
    with pytest.raises(UserError, match=r"train\.rematerialize: an FCN"):
        build_model(FCNConfig(filters=4, depth=1), rematerialize=True)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_joined_convolution_is_the_convolution_of_the_joined_tensors(policy):
    random = np.random.default_rng(2)
    left, right = (tf.constant(random.random((2, 7, 6, channels)), tf.float32) for channels in (3, 5))
    joined = JoinedConv2D(4, 3, padding="same", dtype=policy, kernel_initializer="he_normal", bias_initializer="ones")
    plain = keras.layers.Conv2D(4, 3, padding="same", dtype=policy)
    joined.build([left.shape, right.shape])
    plain.build((2, 7, 6, 8))
    plain.set_weights(joined.get_weights())
    np.testing.assert_allclose(
        joined([left, right]), plain(tf.concat([left, right], axis=3)), atol=1e-5 if policy == "float32" else 5e-2
    )

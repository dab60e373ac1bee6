"""The fused update against Keras's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from segtrain.config import AdamConfig, AdamWConfig, Optimizer, RMSpropConfig, SGDConfig
from segtrain.training.optimizers import build_optimizer
from segtrain.training.update import FusedUpdate

SHAPES = [(3, 3, 4, 8), (8,), (5, 2)]
EVERY_SETTING = [
    AdamConfig(beta_1=0.8, beta_2=0.95, epsilon=1e-4),
    AdamConfig(amsgrad=True),
    AdamWConfig(weight_decay=0.1),
    AdamWConfig(weight_decay=0.1, amsgrad=True),
    SGDConfig(),
    SGDConfig(momentum=0.9),
    SGDConfig(momentum=0.9, nesterov=True),
    RMSpropConfig(rho=0.8, epsilon=1e-4),
    RMSpropConfig(momentum=0.8),
    RMSpropConfig(centered=True),
    RMSpropConfig(centered=True, momentum=0.7),
]


class Updated:
    """Weights and an optimizer that is built for them."""

    def __init__(self, strategy: tf.distribute.Strategy, config: Optimizer, dtype: str) -> None:
        self.strategy, self.dtype = strategy, dtype
        random = np.random.default_rng(0)
        with strategy.scope():
            self.weights = [keras.Variable(random.standard_normal(shape), dtype=dtype) for shape in SHAPES]
            self.optimizer = build_optimizer(config)
            self.optimizer.build(self.weights)

    def arrays(self) -> list[np.ndarray]:
        slots = [variable for variable in self.optimizer.variables if "learning_rate" not in variable.path]
        return [variable.numpy() for variable in [*self.weights, *slots]]

    def gradients(self, step: int) -> list[tf.Tensor]:
        random = np.random.default_rng(step + 1)
        return [tf.constant(random.standard_normal(shape), self.dtype) for shape in SHAPES]


def by_keras(updated: Updated, steps: int) -> list[np.ndarray]:
    optimizer = updated.optimizer
    for step in range(steps):
        optimizer.learning_rate = rate(step)
        optimizer.apply(updated.gradients(step))
    return updated.arrays()


def by_kernels(updated: Updated, config: Optimizer, steps: int) -> list[np.ndarray]:
    with updated.strategy.scope():
        update = FusedUpdate(updated.strategy, updated.optimizer, config)

        def one_replica(gradients: list[tf.Tensor], rate: tf.Tensor) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
            return [tf.identity(gradient) for gradient in gradients], update.factors(rate)

        @tf.function(autograph=False)
        def apply(gradients: list[tf.Tensor], rate: tf.Tensor) -> None:
            mirrored, factors = updated.strategy.run(one_replica, args=(gradients, rate))
            update.apply(mirrored, factors)

        for step in range(steps):
            apply(updated.gradients(step), tf.constant(rate(step), updated.dtype))
    return updated.arrays()


def rate(step: int) -> float:
    return float(np.float32(0.01 * (1 + step % 3)))  # Keras keeps it in float32


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("config", EVERY_SETTING, ids=repr)
def test_one_update_is_keras_own(config: Optimizer, dtype: str) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    expected = by_keras(Updated(strategy, config, dtype), steps=1)
    found = by_kernels(Updated(strategy, config, dtype), config, steps=1)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", EVERY_SETTING, ids=repr)
def test_twenty_updates_at_changing_rates_stay_with_keras(config: Optimizer) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    expected = by_keras(Updated(strategy, config, "float64"), steps=20)
    found = by_kernels(Updated(strategy, config, "float64"), config, steps=20)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_without_momentum_rmsprop_has_no_slot_more_than_in_keras() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    updated = Updated(strategy, RMSpropConfig(), "float32")
    names = [variable.path for variable in updated.optimizer.variables]
    by_kernels(updated, RMSpropConfig(), steps=1)
    assert [variable.path for variable in updated.optimizer.variables] == names
    assert len(names) == 2 + len(SHAPES)

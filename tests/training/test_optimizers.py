"""Optimizers carry every setting; learning rates by hand."""

import keras
import numpy as np
import pytest

from segtrain.config import (
    AdamConfig,
    AdamWConfig,
    ConstantSchedule,
    CosineSchedule,
    PlateauSchedule,
    RMSpropConfig,
    SGDConfig,
)
from segtrain.training.optimizers import build_optimizer, learning_rate


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (AdamConfig(learning_rate=0.02, beta_1=0.8, beta_2=0.99, epsilon=1e-4, amsgrad=True), keras.optimizers.Adam),
        (AdamWConfig(weight_decay=0.1, beta_1=0.8, beta_2=0.99, epsilon=1e-4), keras.optimizers.AdamW),
        (SGDConfig(learning_rate=0.3, momentum=0.9, nesterov=True), keras.optimizers.SGD),
        (RMSpropConfig(rho=0.7, momentum=0.2, epsilon=1e-5, centered=True), keras.optimizers.RMSprop),
    ],
)
def test_every_setting_reaches_the_optimizer(config, kind):
    optimizer = build_optimizer(config)
    assert type(optimizer) is kind
    for name, value in config.model_dump(exclude={"kind"}).items():
        assert optimizer.get_config()[name] == pytest.approx(value), name


def test_adams_epsilon_slows_the_first_step_as_in_its_formula():
    weight = keras.Variable(np.zeros(1, np.float32))
    optimizer = build_optimizer(AdamConfig(learning_rate=0.1, beta_2=0.99, epsilon=1e-3))
    optimizer.apply([np.full(1, 0.01, np.float32)], [weight])
    # Keras corrects the rate and not the moments: alpha = 0.1 sqrt(1 - 0.99) / (1 - 0.9), m = 0.001, v = 1e-6.
    alpha = 0.1 * np.sqrt(0.01) / 0.1
    assert float(weight.numpy()[0]) == pytest.approx(-alpha * 0.001 / (np.sqrt(1e-6) + 1e-3), rel=1e-4)


def test_the_rate_can_be_assigned():
    optimizer = build_optimizer(SGDConfig())
    optimizer.learning_rate = 0.5
    weight = keras.Variable(np.zeros(1, np.float32))
    optimizer.apply([np.ones(1, np.float32)], [weight])
    np.testing.assert_array_equal(weight, -0.5)


def rates(schedule, steps, **more):
    return [learning_rate(schedule, 0.1, step, 4, 3, **more) for step in steps]


def test_constant():
    assert rates(ConstantSchedule(), [0, 5, 1000]) == [0.1, 0.1, 0.1]


@pytest.mark.parametrize("schedule", [ConstantSchedule, CosineSchedule, PlateauSchedule])
def test_warm_up_rises_linearly_to_the_full_rate(schedule):
    # One epoch of 4 steps.
    np.testing.assert_allclose(rates(schedule(warmup_epochs=1.0), range(4)), [0.025, 0.05, 0.075, 0.1])
    np.testing.assert_allclose(rates(schedule(warmup_epochs=0.5), range(2)), [0.05, 0.1])


def test_cosine_from_the_full_rate_to_the_final_fraction():
    schedule = CosineSchedule(final_fraction=0.1)
    # 3 epochs of 4 steps: the middle is step 6, the end step 12, and it stays there if the run is extended.
    np.testing.assert_allclose(rates(schedule, [0, 6, 12, 50]), [0.1, 0.055, 0.01, 0.01])
    assert rates(schedule, [4])[0] == pytest.approx(0.01 + 0.09 * 0.75)  # (1 + cos 60 degrees) / 2


def test_the_cosine_starts_after_the_warm_up():
    # Warm-up of 4 steps, so the cosine spans steps 4 to 12.
    schedule = CosineSchedule(warmup_epochs=1.0)
    np.testing.assert_allclose(rates(schedule, [3, 4, 8, 12]), [0.1, 0.1, 0.05, 0.0], atol=1e-15)


def test_the_cosines_horizon_may_lie_beyond_the_run():
    assert rates(CosineSchedule(horizon_epochs=6), [12])[0] == pytest.approx(0.05)


def test_a_plateau_multiplies_the_rate_down_to_its_floor():
    schedule = PlateauSchedule(min_fraction=0.2)
    assert rates(schedule, [7], plateau_fraction=0.5)[0] == pytest.approx(0.05)
    assert rates(schedule, [7], plateau_fraction=0.125)[0] == pytest.approx(0.02)

"""Losses against values worked out by hand, and against NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segtrain.config import LossConfig, LossTerms
from segtrain.training.losses import (
    bce_per_image,
    dice_loss_from_sums,
    dice_sums_per_image,
    loss_over_pictures,
)

# The example in Keras's documentation of `keras.losses.dice`: two pictures of 2x2 pixels.
KERAS_MASKS = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], np.float32).reshape(2, 2, 2, 1)
KERAS_PROBABILITIES = np.array([[0, 1, 0, 1], [0.4, 0, 0, 0.9]], np.float64).reshape(2, 2, 2, 1)

SHAPE = (2, 3, 4, 1)
MASKS = hnp.arrays(np.float64, SHAPE, elements=st.sampled_from([0.0, 1.0]))
LOGITS = hnp.arrays(np.float64, SHAPE, elements=st.floats(-8, 8, width=32))


def logits_of(probabilities):
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return np.log(clipped / (1 - clipped))


def line(values):
    return np.array(values, np.float64).reshape(1, 1, -1, 1)


def dice_loss(masks, logits, smooth=0.0):
    return dice_loss_from_sums(dice_sums_per_image(masks, logits), smooth).numpy()


def test_dice_loss_of_the_keras_example():
    logits = logits_of(KERAS_PROBABILITIES)
    np.testing.assert_allclose(dice_loss(KERAS_MASKS, logits), [0.5, 0.75757575], rtol=1e-7)
    whole = tf.reduce_sum(dice_sums_per_image(KERAS_MASKS, logits), 0)
    assert dice_loss_from_sums(whole, 0.0).numpy() == pytest.approx(0.6164384, rel=1e-6)


def test_half_of_the_object_found_is_a_dice_of_two_thirds():
    assert dice_loss(line([1, 1, 1, 1]), line([99, 99, -99, -99])) == pytest.approx(1 / 3)


def test_smoothing_is_added_above_and_below():
    # 2 * 2 = 4 of 4 + 2 = 6, smoothed by 2: 1 - 6 / 8.
    assert dice_loss(line([1, 1, 1, 1]), line([99, 99, -99, -99]), smooth=2.0) == pytest.approx(0.25)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_an_empty_mask_found_empty_costs_nothing(smooth):
    nothing, logits = tf.zeros(SHAPE), tf.Variable(tf.fill(SHAPE, -200.0))
    with tf.GradientTape() as tape:
        loss = dice_loss_from_sums(dice_sums_per_image(nothing, logits), smooth)
    np.testing.assert_array_equal(loss, 0.0)
    np.testing.assert_array_equal(tape.gradient(loss, logits), 0.0)


def test_cross_entropy_by_hand():
    assert bce_per_image(line([0, 1]), line([0, 0])).numpy() == pytest.approx(np.log(2))
    expected = (np.log1p(np.exp(-2)) + np.log1p(np.exp(3))) / 2
    assert bce_per_image(line([1, 0]), line([2, 3])).numpy() == pytest.approx(expected)
    assert bce_per_image(line([1, 0]), line([-1000, 1000])).numpy() == 1000.0


def loss_of(config, masks, logits, weights):
    return loss_over_pictures(config, masks, logits, dice_sums_per_image(masks, logits), tf.constant(weights))


def test_terms_and_pictures_are_weighted_and_added():
    masks, logits = KERAS_MASKS.astype(np.float64), logits_of(KERAS_PROBABILITIES)
    weights = np.array([1.0, 0.25])
    config = LossConfig(terms=LossTerms(dice=0.5, bce=2.0), dice_smooth=1.0)
    expected = 2.0 * bce_per_image(masks, logits) + 0.5 * dice_loss(masks, logits, 1.0)
    np.testing.assert_allclose(loss_of(config, masks, logits, weights), np.sum(weights * expected))
    for alone in ("dice", "bce"):
        config = LossConfig(terms=LossTerms(**{alone: 3.0}), dice_smooth=1.0)
        part = dice_loss(masks, logits, 1.0) if alone == "dice" else bce_per_image(masks, logits)
        np.testing.assert_allclose(loss_of(config, masks, logits, weights), np.sum(3.0 * weights * part))


def test_a_dice_over_the_batch_is_no_term_of_a_picture():
    masks, logits = KERAS_MASKS.astype(np.float64), logits_of(KERAS_PROBABILITIES)
    config = LossConfig(terms=LossTerms(dice=0.5, bce=2.0), dice_over="batch")
    expected = 2.0 * bce_per_image(masks, logits).numpy().sum()
    np.testing.assert_allclose(loss_of(config, masks, logits, np.ones(2)), expected)


@settings(max_examples=25)
@given(masks=MASKS, logits=LOGITS, smooth=st.sampled_from([0.0, 1.0, 10.0]))
def test_values_and_gradients_are_those_of_the_formulas(masks, logits, smooth):
    p, pixels = 1 / (1 + np.exp(-logits)), SHAPE[1] * SHAPE[2]
    overlap = 2 * (p * masks).sum((1, 2, 3), keepdims=True) + smooth
    size = (p + masks).sum((1, 2, 3), keepdims=True) + smooth
    variable = tf.Variable(logits)
    with tf.GradientTape(persistent=True) as tape:
        bce = bce_per_image(masks, variable)
        dice = dice_loss_from_sums(dice_sums_per_image(masks, variable), smooth)
    assert bce.dtype == dice.dtype == tf.float64
    np.testing.assert_allclose(dice, (1 - overlap / size).ravel(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        bce, -(masks * np.log(p) + (1 - masks) * np.log1p(-p)).mean((1, 2, 3)), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(tape.gradient(bce, variable), (p - masks) / pixels, rtol=1e-9, atol=1e-12)
    expected = -(2 * masks * size - overlap) / size**2 * p * (1 - p)
    np.testing.assert_allclose(tape.gradient(dice, variable), expected, rtol=1e-9, atol=1e-12)


def test_a_full_picture_in_half_precision_is_finite_and_exact():
    masks = np.zeros((1, 1280, 1918, 1), np.float16)
    masks[:, 100:1100, 200:1700] = 1  # 1,500,000 pixels
    found = np.zeros_like(masks)
    found[:, 100:1100, 201:1701] = 1
    logits = tf.Variable(tf.constant(np.where(found == 1, 60, -60), tf.float16))
    with tf.GradientTape() as tape:
        sums = dice_sums_per_image(masks, logits)
        loss = loss_of(LossConfig(), masks, logits, np.ones(1, np.float32))
    assert sums.dtype == loss.dtype == tf.float32
    np.testing.assert_array_equal(sums, [[2 * 1_499_000, 3_000_000]])
    expected_bce = 2000 * 60 / (1280 * 1918)
    assert loss.numpy() == pytest.approx(1 - 2_998_001 / 3_000_001 + expected_bce, rel=1e-5)
    assert np.isfinite(tape.gradient(loss, logits)).all()

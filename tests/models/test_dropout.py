"""Masks of dropout: what they depend on, their rate, and that nothing in them depends on anything else in them."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import chi2

from segtrain.models.dropout import Dropout, sample_words
from segtrain.models.step_context import forward_pass


def drop(keys, *, step=0, seed=1, layer=0, rate=0.5, shape=(4, 6, 8)):
    """What dropout makes of ones, for a sample of each key."""
    keys = tf.constant(keys, tf.int64)
    with forward_pass(step=tf.constant(step, tf.int64), keys=keys, weights=tf.ones(len(keys))):
        return Dropout(rate, seed, layer)(tf.ones((len(keys), *shape)), training=True).numpy()


def test_a_samples_mask_is_the_same_at_any_place_of_any_batch():
    together = drop([11, 22, 33])
    np.testing.assert_array_equal(together[::-1], drop([33, 22, 11]))
    np.testing.assert_array_equal(together[1:2], drop([22]))


def test_masks_differ_between_samples_steps_layers_and_seeds():
    masks = [drop([11]), drop([12]), drop([11], step=1), drop([11], layer=1), drop([11], seed=2), drop([2**62 + 11])]
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            assert 0.3 < np.mean(mask == other) < 0.7  # unrelated coins agree half of the time


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(rate):
    dropped = drop(range(8), rate=rate, shape=(32, 32, 8))
    assert dropped.mean() == pytest.approx(1.0, abs=0.05)
    assert np.mean(dropped == 0) == pytest.approx(rate, abs=0.01)
    assert np.allclose(dropped[dropped > 0], 1 / (1 - rate))


def test_the_mask_does_not_depend_on_precision_or_on_a_known_batch_size():
    keys = tf.constant([5, 6], tf.int64)
    expected = drop([5, 6]) > 0
    for dtype in ("float64", "mixed_float16"):
        layer = Dropout(0.5, 1, 0, dtype=dtype)

        @tf.function(input_signature=[tf.TensorSpec((None, 4, 6, 8))])
        def unknown_batch(x, layer=layer):
            with forward_pass(step=tf.constant(0, tf.int64), keys=keys, weights=tf.ones(2)):
                return layer(x, training=True)

        np.testing.assert_array_equal(unknown_batch(tf.ones((2, 4, 6, 8))) > 0, expected)


def test_dropout_is_the_identity_outside_training():
    x = tf.ones((1, 2, 2, 1))
    np.testing.assert_array_equal(Dropout(0.5, 1, 0)(x), x)


def test_dropout_refuses_to_train_without_a_step_to_draw_from():
    with pytest.raises(RuntimeError, match="forward_pass"):
        Dropout(0.5, 1, 0)(tf.ones((1, 2, 2, 1)), training=True)


def assert_independent(first: np.ndarray, second: np.ndarray, kept: float) -> None:
    """By chi-square over the four outcomes of two coins of this rate, at a level of one in a hundred thousand."""
    shares = np.outer([1 - kept, kept], [1 - kept, kept]).ravel()
    expected = shares * first.size
    found = np.bincount((2 * first.astype(int) + second).ravel(), minlength=4)
    assert np.sum((found - expected) ** 2 / expected) < chi2.isf(1e-5, df=3)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_what_drops_is_independent_between_pixels_channels_samples_layers_and_steps(rate: float) -> None:
    shape = (64, 64, 16)
    mask = drop([7, 8], rate=rate, shape=shape) > 0
    pairs = {
        "columns": (mask[:, :, 1:], mask[:, :, :-1]),
        "rows": (mask[:, 1:], mask[:, :-1]),
        "channels": (mask[..., 1:], mask[..., :-1]),
        "samples": (mask[:1], mask[1:]),
        "layers": (mask, drop([7, 8], rate=rate, shape=shape, layer=1) > 0),
        "steps": (mask, drop([7, 8], rate=rate, shape=shape, step=1) > 0),
        "seeds": (mask, drop([7, 8], rate=rate, shape=shape, seed=2) > 0),
    }
    for first, second in pairs.values():
        assert_independent(first, second, 1 - rate)


def test_samples_and_steps_in_a_row_draw_words_that_are_unrelated_in_every_bit() -> None:
    keys, steps = tf.range(64, dtype=tf.int64), range(64)
    words = np.stack([sample_words(3, 0, tf.constant(step, tf.int64), keys).numpy() for step in steps])
    assert np.unique(words).size == words.size
    bits = (words[..., None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    for changed in (bits[1:] != bits[:-1], bits[:, 1:] != bits[:, :-1]):
        assert np.all(np.abs(changed.reshape(-1, 64).mean(axis=0) - 0.5) < 0.05)  # 6 standard deviations


def test_the_gradient_flows_through_what_is_kept() -> None:
    x, keys = tf.random.normal((2, 4, 4, 3)), tf.constant([1, 2], tf.int64)
    with forward_pass(step=tf.constant(0, tf.int64), keys=keys, weights=tf.ones(2)), tf.GradientTape() as tape:
        tape.watch(x)
        y = Dropout(0.25, 1, 0)(x, training=True)
    np.testing.assert_allclose(tape.gradient(y, x), np.where(y != 0, 1 / 0.75, 0.0))

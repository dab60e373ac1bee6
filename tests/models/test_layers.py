"""Padding, cropping and dropout."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.models.layers import CropLike, Dropout, PadToMultiple, layer_seed
from segtrain.models.step_context import forward_pass

SIZES = st.integers(1, 40)


@settings(max_examples=30)
@given(height=SIZES, width=SIZES, multiple=st.sampled_from([1, 2, 4, 16]))
def test_cropping_undoes_padding_at_any_size(height, width, multiple):
    picture = np.random.default_rng(0).random((1, height, width, 2), np.float32)
    padded = PadToMultiple(multiple)(picture)
    assert padded.shape[1] % multiple == padded.shape[2] % multiple == 0
    assert padded.shape[1] - height < multiple
    assert padded.shape[2] - width < multiple
    np.testing.assert_array_equal(CropLike(multiple)(padded, picture), picture)


def test_padding_mirrors_the_border():
    row = np.arange(1.0, 6.0, dtype=np.float32).reshape(1, 1, 5, 1)
    np.testing.assert_array_equal(PadToMultiple(8)(row)[0, 0, :, 0], [1, 1, 2, 3, 4, 5, 5, 4])
    np.testing.assert_array_equal(PadToMultiple(8)(row[:, :, :2])[0, 0, :, 0], [2, 2, 1, 1, 2, 2, 1, 1])


def test_padding_works_where_sizes_are_unknown_while_tracing():
    pad, crop = PadToMultiple(4), CropLike(4)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 1))])
    def there_and_back(x):
        return pad(x), crop(pad(x), x)

    picture = np.random.default_rng(0).random((2, 5, 8, 1), np.float32)
    padded, cropped = there_and_back(picture)
    assert padded.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(cropped, picture)


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


def test_layer_seeds_follow_seed_and_name():
    seeds = {layer_seed(seed, name) for seed in range(3) for name in ("a", "b")}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert layer_seed(1, "a") == layer_seed(1, "a")

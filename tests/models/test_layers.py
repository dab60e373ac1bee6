"""Padding, cropping and the seeds of initial weights."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.models.layers import CropLike, PadToMultiple, layer_seed

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


def test_layer_seeds_follow_seed_and_name():
    seeds = {layer_seed(seed, name) for seed in range(3) for name in ("a", "b")}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert layer_seed(1, "a") == layer_seed(1, "a")

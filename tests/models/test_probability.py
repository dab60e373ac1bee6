"""Probabilities at a picture's own size, by linear algebra and by TensorFlow's own resizing."""

import numpy as np
import pytest
import tensorflow as tf

from segtrain.models.probability import upsample_probability


def test_logits_are_interpolated_between_pixel_centres_before_the_sigmoid() -> None:
    logits = np.random.default_rng(1).normal(0.0, 4.0, (5, 7, 1)).astype(np.float32)
    found = upsample_probability(logits, 13, 9)
    rows, columns = (_weights(new, old) for new, old in ((13, 5), (9, 7)))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(rows @ logits[..., 0] @ columns.T))), atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("size", [(1280, 1918), (37, 50), (19, 101), (9, 7), (1, 1)])
def test_one_side_after_the_other_gives_the_same_bits_as_both_at_once(size: tuple[int, int]) -> None:
    logits = np.random.default_rng(2).normal(0.0, 4.0, (37, 50, 1)).astype(np.float32)
    expected = tf.sigmoid(tf.image.resize(logits, size, method="bilinear")[..., 0]).numpy()
    np.testing.assert_array_equal(upsample_probability(logits, *size), expected)


def _weights(new: int, old: int) -> np.ndarray:
    """(new, old): linear interpolation at the centres of `new` pixels over `old` ones, whose border goes on outside."""
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(old)))

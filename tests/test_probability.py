"""Probabilities at a picture's own size, by linear algebra."""

import numpy as np

from segtrain.probability import upsample_probability


def test_logits_are_interpolated_between_pixel_centres_before_the_sigmoid() -> None:
    logits = np.random.default_rng(1).normal(0.0, 4.0, (5, 7, 1)).astype(np.float32)
    found = upsample_probability(logits, 13, 9)
    rows, columns = (_weights(new, old) for new, old in ((13, 5), (9, 7)))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(rows @ logits[..., 0] @ columns.T))), atol=1e-6)
    assert found.dtype == np.float32


def _weights(new: int, old: int) -> np.ndarray:
    """(new, old): linear interpolation at the centres of `new` pixels over `old` ones, whose border goes on outside."""
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(old)))

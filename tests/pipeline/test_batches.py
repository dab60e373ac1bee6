"""Batches on their way to a device."""

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segtrain.config import Recipe, override
from segtrain.pipeline.augment import draw_augmentation
from segtrain.pipeline.batches import PackedBatch, ReplicaBatch, packed, unpacked


@given(arrays(np.int64, 3), st.sampled_from([[], ["augment.rotate_degrees=30", "augment.contrast=0.3"]]))
def test_a_packed_batch_holds_the_same_to_the_last_bit(keys: np.ndarray, settings: list[str]) -> None:
    images, masks = np.zeros((3, 2, 2, 3), np.uint8), np.ones((3, 2, 2, 1), np.uint8)
    draws = draw_augmentation(override(Recipe(), settings).augment, 1, 2, keys, 480, 640)
    batch = ReplicaBatch(images, masks, np.array([1.0, 1.0, 0.0], np.float32), keys, draws)
    placed = PackedBatch(*map(tf.convert_to_tensor, packed(batch)))
    for before, after in zip(tf.nest.flatten(batch), tf.nest.flatten(unpacked(placed)), strict=True):
        assert np.asarray(after).dtype == before.dtype
        np.testing.assert_array_equal(after, before)

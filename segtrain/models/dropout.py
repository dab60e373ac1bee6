"""Dropout whose masks depend on sample, step and layer alone, drawn by one compiled piece a layer."""

from typing import Any

import keras
import tensorflow as tf

from segtrain.models import step_context


@keras.saving.register_keras_serializable(package="segtrain")
class Dropout(keras.layers.Layer):
    """Dropout whose mask for a sample depends on (seed, step, layer, the sample's key) and on nothing else.

    Not on the replica, the sample's place in the batch, the batch's size, or how often the layer is evaluated: a
    resumed run, another number of replicas and recomputed activations all draw the same mask. Training outside of
    `step_context.forward_pass` raises RuntimeError, because there is no step to draw from.
    """

    def __init__(self, rate: float, seed: int, layer_index: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed
        self.layer_index = layer_index

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not training or self.rate == 0.0:
            return x
        facts = step_context.current()
        if facts is None:
            raise RuntimeError(f"{self.name}: dropout trains only inside segtrain.models.step_context.forward_pass")

        @tf.custom_gradient
        def drop(x: tf.Tensor) -> Any:
            kept, mask = self._compiled(x, facts.keys, tf.cast(facts.step, tf.int64))
            for made in (kept, mask):
                made.set_shape(x.shape)  # which a compiled function does not tell
            return kept, lambda dy: tf.where(mask, dy * self._scale(dy), tf.zeros([], dy.dtype))

        return drop(x)

    @tf.function(jit_compile=True, autograph=False)
    def _compiled(self, x: tf.Tensor, keys: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """x (B, ...) with units dropped, and which ones stay: boolean (B, ...)."""
        words = sample_words(self.seed, self.layer_index, step, keys)
        drawn = tf.reshape(unit_words(words, tf.size(x[0])), tf.shape(x))
        mask = drawn >= tf.constant(int(self.rate * 2**32), tf.uint32)
        return tf.where(mask, x * self._scale(x), tf.zeros([], x.dtype)), mask

    def _scale(self, x: tf.Tensor) -> tf.Tensor:
        return tf.constant(1.0 / (1.0 - self.rate), x.dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed, "layer_index": self.layer_index}


def sample_words(seed: int, layer_index: int, step: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """A random word, uint64 (B,), of each sample's key (int64), for one layer and step (int64 scalar)."""
    words = tf.zeros([], tf.uint64)
    numbers = (tf.constant(seed, tf.int64), tf.constant(layer_index, tf.int64), step, keys)
    for number in (tf.cast(number, tf.uint64) for number in numbers):
        words = _mixed(words + number, 64, (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), 31)
    return words


def unit_words(words: tf.Tensor, units: tf.Tensor) -> tf.Tensor:
    """A random word, uint32 (B, units), of each unit of each sample, from `sample_words`.

    The unit's number is mixed with one half of the sample's word, then with the other. So two samples have the same
    draws, shifted, only where both halves fit.
    """
    low, high = tf.cast(words, tf.uint32), tf.cast(tf.bitwise.right_shift(words, tf.constant(32, tf.uint64)), tf.uint32)
    numbers = tf.cast(tf.range(units), tf.uint32)
    for half in (low, high):
        numbers = _mixed(numbers + half[:, None], 32, (16, 0x7FEB352D), (15, 0x846CA68B), 16)
    return numbers


def _mixed(x: tf.Tensor, bits: int, first: tuple[int, int], second: tuple[int, int], last: int) -> tf.Tensor:
    """x shifted onto itself, twice with a product: a bijection in which each bit of x moves half of the result's bits.

    With 64 bits this is the end of SplitMix64 (Steele, Lea and Flood 2014), with 32 `lowbias32` (Wellons 2018).
    """
    for shift, factor in (first, second):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, x.dtype)))
        x *= tf.constant(factor, x.dtype)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(last, x.dtype)))

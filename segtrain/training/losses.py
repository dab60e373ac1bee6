"""Dice loss and binary cross-entropy on logits, per picture, in float32 at least.

The functions take masks and logits (B, H, W, 1) and keep float64. A sum over the pixels of one 1918x1280 picture
passes 65,504, the largest float16, 37 times over; hence the cast before anything is added.
"""

from typing import Any

import keras
import tensorflow as tf

from segtrain.config import LossConfig

PIXELS = (1, 2, 3)


def _at_least_float32(masks: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    logits = tf.convert_to_tensor(logits)
    dtype = tf.float64 if logits.dtype == tf.float64 else tf.float32
    return tf.cast(masks, dtype), tf.cast(logits, dtype)


def bce_per_image(masks: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """(B,): binary cross-entropy, mean over the pixels, in nats."""
    masks, logits = _at_least_float32(masks, logits)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=masks, logits=logits), PIXELS)


def dice_sums_per_image(masks: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """(B, 2): 2 sum(p t) and sum(p) + sum(t) over the pixels, p = sigmoid(logits), t = masks.

    Sums of pictures may be added, over a batch or over replicas, before `dice_loss_from_sums`.
    """
    masks, logits = _at_least_float32(masks, logits)
    probability = tf.sigmoid(logits)
    return tf.stack(
        [2.0 * tf.reduce_sum(probability * masks, PIXELS), tf.reduce_sum(probability + masks, PIXELS)], axis=1
    )


def dice_loss_from_sums(sums: tf.Tensor, smooth: float) -> tf.Tensor:
    """(...): 1 - (I + smooth) / (S + smooth) of sums (..., 2) = [I, S]; 0 where both are empty and smooth is 0.

    The soft dice of Milletari et al. 2016 with sums, not sums of squares, in the denominator.
    """
    intersection, total = sums[..., 0] + smooth, sums[..., 1] + smooth
    empty = total == 0
    return tf.where(empty, tf.zeros_like(total), 1.0 - intersection / tf.where(empty, tf.ones_like(total), total))


def loss_per_image(config: LossConfig, masks: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """(B,): weighted sum of the terms, with the dice of each picture on its own (`dice_over: image`)."""
    total = tf.zeros([], _at_least_float32(masks, logits)[1].dtype)
    if config.terms.bce:
        total += config.terms.bce * bce_per_image(masks, logits)
    if config.terms.dice:
        total += config.terms.dice * dice_loss_from_sums(dice_sums_per_image(masks, logits), config.dice_smooth)
    return total


@keras.saving.register_keras_serializable(package="segtrain")
class SegmentationLoss(keras.losses.Loss):
    """The same loss for `compile` and `fit`; with `dice_over: batch` the dice runs over all pixels of the batch."""

    def __init__(self, config: LossConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """(B,) from masks and logits (B, H, W, 1)."""
        if self.config.dice_over == "image":
            return loss_per_image(self.config, y_true, y_pred)
        terms, smooth = self.config.terms, self.config.dice_smooth
        sums = tf.reduce_sum(dice_sums_per_image(y_true, y_pred), 0)
        return terms.bce * bce_per_image(y_true, y_pred) + terms.dice * dice_loss_from_sums(sums, smooth)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "config": self.config.model_dump(mode="json")}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SegmentationLoss":
        return cls(**{**config, "config": LossConfig.model_validate(config["config"])})

"""Dice loss and binary cross-entropy on logits, per picture, in float32 at least.

The functions take masks and logits (B, H, W, 1) and keep float64. A sum over the pixels of one 1918x1280 picture
passes 65,504, the largest float16, 37 times over; hence the cast before anything is added.
"""

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


def loss_over_pictures(
    config: LossConfig, masks: tf.Tensor, logits: tf.Tensor, sums: tf.Tensor, weights: tf.Tensor
) -> tf.Tensor:
    """(): the terms that each picture has on its own, summed over the pictures with their weights (B,).

    `sums` is `dice_sums_per_image` of them. A dice over the whole batch (`dice_over: batch`) is not among the terms.
    """
    total = tf.zeros([], weights.dtype)
    if config.terms.bce:
        bce = tf.cast(bce_per_image(masks, logits), weights.dtype)
        total += config.terms.bce * tf.reduce_sum(weights * bce)
    if config.terms.dice and config.dice_over == "image":
        total += config.terms.dice * tf.reduce_sum(weights * dice_loss_from_sums(sums, config.dice_smooth))
    return total

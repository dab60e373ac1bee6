"""Batch normalization that neither padding, nor the number of replicas, nor half precision changes."""

from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

from segtrain.models import step_context

Moments = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
"""Mean (C,), variance (C,) and number of pixels (scalar), over the samples that count, in the dtype of the weights."""


@keras.saving.register_keras_serializable(package="segtrain")
class BatchNorm(keras.layers.Layer):
    """Batch normalization (Ioffe and Szegedy 2015) of (B, H, W, C) over all but the channels, by weighted samples.

    - Samples of weight 0 in the open `forward_pass` do not count; without a pass every sample does.
    - `synchronized` takes the statistics over the global batch, so that N replicas compute what one would. It costs one
      small all-reduce in each direction.
    - Otherwise each replica normalizes by its own part, and the moving averages are averaged over the replicas at each
      update. So any one replica's copy is the run's.
    - The variance is E[x^2] - E[x]^2 from sums in float32 (float64 under float64), never below 0. It needs one look at
      the activations and adds up over replicas.
    """

    def __init__(self, synchronized: bool = True, momentum: float = 0.99, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.synchronized = synchronized
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(shape=shape, name="gamma", initializer="ones", autocast=False)
        self.beta = self.add_weight(shape=shape, name="beta", initializer="zeros", autocast=False)
        # Synchronized statistics are the same on every replica: nothing needs to be averaged, only kept in step.
        aggregation = "only_first_replica" if self.synchronized else "mean"
        moving = {"shape": shape, "trainable": False, "autocast": False, "aggregation": aggregation}
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", **moving)
        self.moving_variance = self.add_weight(name="moving_variance", initializer="ones", **moving)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if not training:
            mean, variance = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
            return _affine(x, gamma, beta, mean, variance, self.epsilon)
        facts = step_context.current()
        weights = tf.ones(tf.shape(x)[:1], gamma.dtype) if facts is None else tf.cast(facts.weights, gamma.dtype)
        moments = self._moments(tf.stop_gradient(x), weights)
        if facts is None or facts.update_statistics:
            self._move_statistics(moments)
        return self._normalize(x, gamma, beta, moments, weights)

    def _over_replicas(self, values: tf.Tensor) -> tf.Tensor:
        """Sum over the replicas where this layer is synchronized."""
        replica = tf.distribute.get_replica_context()
        if not self.synchronized or replica is None or replica.num_replicas_in_sync == 1:
            return values
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)

    def _moments(self, x: tf.Tensor, weights: tf.Tensor) -> Moments:
        wide = tf.cast(x, weights.dtype)
        # Weights meet the sums of each sample, (B, 2 C), and not the activations: they cost no pass over the picture.
        by_sample = tf.concat([tf.reduce_sum(wide, [1, 2]), tf.reduce_sum(tf.square(wide), [1, 2])], axis=1)
        pixels = tf.cast(tf.shape(x)[1] * tf.shape(x)[2], weights.dtype) * tf.reduce_sum(weights)
        sums = tf.concat([tf.linalg.matvec(by_sample, weights, transpose_a=True), [pixels]], axis=0)
        sums = self._over_replicas(sums)
        count = sums[-1]
        mean, mean_square = tf.split(tf.math.divide_no_nan(sums[:-1], count), 2)
        return mean, tf.maximum(mean_square - tf.square(mean), 0.0), count

    def _move_statistics(self, moments: Moments) -> None:
        mean, variance, count = moments
        # A batch of padding alone, possible under accumulation, has no statistics to add.
        seen = tf.cast(count > 0, count.dtype)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            old = tf.convert_to_tensor(moving)
            moving.assign(old + seen * (1.0 - self.momentum) * (value - old))

    def _normalize(
        self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, moments: Moments, weights: tf.Tensor
    ) -> tf.Tensor:
        """gamma (x - mean) / sqrt(variance + epsilon) + beta, in x's dtype, for weights (B,) of the samples.

        The gradient is written out because the derived one keeps a float32 copy of the activations under mixed
        precision, adds them up in half precision, and passes over them more often.
        """
        mean, variance, count = moments

        def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
            def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                dx, dgamma, dbeta = _affine_gradient(dy, x, gamma, mean, variance, self.epsilon)
                # d loss / d x = scale (dy - w (sum dy + x_hat sum(dy x_hat)) / count): the statistics depend on every
                # sample of weight 1 on every replica. `_affine` makes x_hat of x.
                by_mean, by_deviation = tf.split(
                    tf.math.divide_no_nan(self._over_replicas(tf.concat([dbeta, dgamma], 0)), count), 2
                )
                scale = gamma * tf.math.rsqrt(variance + self.epsilon)
                change = _affine(x, scale * by_deviation, scale * by_mean, mean, variance, self.epsilon)
                return dx - tf.cast(weights, x.dtype)[:, None, None, None] * change, dgamma, dbeta

            return _affine(x, gamma, beta, mean, variance, self.epsilon), gradient

        return tf.custom_gradient(normalize)(x, gamma, beta)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "synchronized": self.synchronized,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }


def _affine(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, epsilon: float
) -> tf.Tensor:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta in x's dtype: one kernel, without a tensor in between."""
    if x.dtype == tf.float64:  # for which the kernel does not exist
        scale = gamma * tf.math.rsqrt(variance + epsilon)
        return x * scale + (beta - mean * scale)
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon, is_training=False
    ).y


def _affine_gradient(
    dy: tf.Tensor, x: tf.Tensor, gamma: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Gradients of `_affine` for x, gamma and beta, with mean and variance as constants."""
    if x.dtype == tf.float64 or is_op_determinism_enabled():  # on GPUs the kernel is not deterministic, and refuses
        wide, inverse = tf.cast(dy, gamma.dtype), tf.math.rsqrt(variance + epsilon)
        dbeta = tf.reduce_sum(wide, [0, 1, 2])
        dgamma = (tf.reduce_sum(wide * tf.cast(x, gamma.dtype), [0, 1, 2]) - mean * dbeta) * inverse
        return tf.cast(gamma * inverse * wide, x.dtype), dgamma, dbeta
    found = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=dy,
        x=x,
        scale=gamma,
        reserve_space_1=mean,
        reserve_space_2=variance,
        reserve_space_3=tf.zeros([0], tf.float32),
        epsilon=epsilon,
        is_training=False,
    )
    return found.x_backprop, found.scale_backprop, found.offset_backprop

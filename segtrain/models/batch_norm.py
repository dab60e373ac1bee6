"""Batch normalization that neither padding, nor the number of replicas, nor half precision changes."""

from collections.abc import Callable
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
    - Otherwise each replica normalizes by its own part and moves averages of its own; their mean over the replicas is
      the run's. Whoever saves or scores takes it first.
    - The variance is E[x^2] - E[x]^2 from sums in float32 (float64 under float64), never below 0. It needs one look at
      the activations and adds up over replicas.
    """

    def __init__(self, synchronized: bool = True, momentum: float = 0.99, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.synchronized = synchronized
        self.momentum = momentum
        self.epsilon = epsilon
        self._pieces: dict[Callable[..., Any], Callable[..., Any]] = {}

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(shape=shape, name="gamma", initializer="ones", autocast=False)
        self.beta = self.add_weight(shape=shape, name="beta", initializer="zeros", autocast=False)
        self.moving_mean = self._statistic("moving_mean", "zeros", shape)
        self.moving_variance = self._statistic("moving_variance", "ones", shape)

    def _statistic(self, name: str, initializer: str, shape: tuple[int | None, ...]) -> keras.Variable:
        """A moving average of which each replica has its own; synchronized ones are equal everywhere."""
        return keras.Variable(
            initializer,
            shape=shape,
            dtype=self.variable_dtype,
            trainable=False,
            autocast=False,
            name=name,
            synchronization="on_read",
            aggregation="only_first_replica" if self.synchronized else "mean",
        )

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if not training:
            mean, variance = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
            return _affine(x, gamma, beta, mean, variance, self.epsilon)
        facts = step_context.current()
        if (facts is None or facts.whole) and self.has_kernel(tf.distribute.get_strategy()):
            y, moments = _normalize_whole(x, gamma, beta, self.epsilon)
        else:
            weights = tf.ones(tf.shape(x)[:1], gamma.dtype) if facts is None else tf.cast(facts.weights, gamma.dtype)
            y, moments = self._normalize(x, gamma, beta, weights, compiled=facts is not None and facts.compiled)
        if facts is None or facts.update_statistics:
            self._move_statistics(moments)
        return y

    def has_kernel(self, strategy: tf.distribute.Strategy) -> bool:
        """Whether TensorFlow's training kernel computes the same where every sample counts.

        It knows one replica's samples alone and no float64, and its gradient need not be deterministic.
        """
        alone = not self.synchronized or strategy.num_replicas_in_sync == 1
        return alone and self.compute_dtype != "float64" and not is_op_determinism_enabled()

    def _over_replicas(self, values: tf.Tensor) -> tf.Tensor:
        """Sum over the replicas where this layer is synchronized."""
        replica = tf.distribute.get_replica_context()
        if not self.synchronized or replica is None or replica.num_replicas_in_sync == 1:
            return values
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)

    def _move_statistics(self, moments: Moments) -> None:
        mean, variance, count = moments
        # A batch of padding alone, possible under accumulation, has no statistics to add.
        seen = tf.cast(count > 0, count.dtype)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            old = tf.convert_to_tensor(moving)
            moving.assign(old + seen * (1.0 - self.momentum) * (value - old))

    def _normalize(
        self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, weights: tf.Tensor, *, compiled: bool
    ) -> tuple[tf.Tensor, Moments]:
        """gamma (x - mean) / sqrt(variance + epsilon) + beta, in x's dtype, for weights (B,) of the samples.

        The gradient is written out because the derived one keeps a float32 copy of the activations under mixed
        precision, adds them up in half precision, and passes over them more often. With `compiled` XLA makes one pass
        of what lies between two sums over replicas.
        """
        piece = self._compiled if compiled else _as_it_is
        sums = self._over_replicas(piece(_sums)(tf.stop_gradient(x), weights))
        count = sums[-1]
        mean, mean_square = tf.split(tf.math.divide_no_nan(sums[:-1], count), 2)
        variance = tf.maximum(mean_square - tf.square(mean), 0.0)
        at = (mean, variance, self.epsilon)

        def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
            def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                dgamma, dbeta = piece(_gradient_sums)(dy, x, gamma, *at)
                means = tf.math.divide_no_nan(self._over_replicas(tf.concat([dbeta, dgamma], 0)), count)
                return piece(_input_gradient)(dy, x, gamma, *at, means, weights), dgamma, dbeta

            return piece(_affine)(x, gamma, beta, *at), gradient

        return tf.custom_gradient(normalize)(x, gamma, beta), (mean, variance, count)

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a piece that XLA compiles. Sums over replicas stay outside, where XLA cannot hold them."""
        if function not in self._pieces:
            self._pieces[function] = tf.function(function, jit_compile=True, autograph=False)
        return self._pieces[function]

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "synchronized": self.synchronized,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _normalize_whole(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tuple[tf.Tensor, Moments]:
    """Normalize (B, H, W, C) by its own moments, in one kernel; its gradient is one too."""
    nothing = tf.zeros([0], gamma.dtype)
    found = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=nothing, variance=nothing, epsilon=epsilon, is_training=True
    )
    pixels = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), gamma.dtype)
    # The kernel tells the sample's variance (divided by n - 1), which is never used here.
    variance = found.batch_variance * ((pixels - 1.0) / pixels)
    return found.y, (tf.stop_gradient(found.batch_mean), tf.stop_gradient(variance), pixels)


def _sums(x: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Sums of x and of its square, of each channel, and the number of pixels: (2 C + 1,), by samples of `weights`."""
    wide = tf.cast(x, weights.dtype)
    # Weights meet the sums of each sample, (B, 2 C), and not the activations: they cost no pass over the picture.
    by_sample = tf.concat([tf.reduce_sum(wide, [1, 2]), tf.reduce_sum(tf.square(wide), [1, 2])], axis=1)
    pixels = tf.cast(tf.shape(x)[1] * tf.shape(x)[2], weights.dtype) * tf.reduce_sum(weights)
    return tf.concat([tf.linalg.matvec(by_sample, weights, transpose_a=True), [pixels]], axis=0)


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


def _gradient_sums(
    dy: tf.Tensor, x: tf.Tensor, gamma: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """One replica's gradients for gamma and beta."""
    return _affine_gradient(dy, x, gamma, mean, variance, epsilon)[1:]


def _input_gradient(
    dy: tf.Tensor,
    x: tf.Tensor,
    gamma: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    epsilon: float,
    means: tf.Tensor,
    weights: tf.Tensor,
) -> tf.Tensor:
    """d loss / d x = scale (dy - w (mean dy + x_hat mean(dy x_hat))), with scale = gamma / sqrt(variance + epsilon).

    means: (2 C,), of dy and of dy x_hat over all samples of weight 1 on all replicas: the statistics depend on each.
    """
    by_mean, by_deviation = tf.split(means, 2)
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    change = _affine(x, scale * by_deviation, scale * by_mean, mean, variance, epsilon)  # makes x_hat of x
    # A graph computes what it shares with `_gradient_sums` once.
    dx, _, _ = _affine_gradient(dy, x, gamma, mean, variance, epsilon)
    return dx - tf.cast(weights, x.dtype)[:, None, None, None] * change

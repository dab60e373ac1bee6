"""The optimizer's update of all weights: one of TensorFlow's own kernels a weight.

Keras's `update_step` makes 8 to 20 small operations a weight, and a U-Net of depth 4 has 64 weights. On a GPU an
operation costs 4 to 6 microseconds to start, so these would take longer than the convolutions of a small picture.
Weights, slots and their order in a checkpoint are Keras's.
"""

from typing import Any

import keras
import tensorflow as tf

from segtrain.config import AdamConfig, AdamWConfig, Optimizer, RMSpropConfig, SGDConfig


class FusedUpdate:
    """`apply(gradients, factors(rate))` does what Keras's `optimizer.apply` does, less its own sum over replicas.

    Make it inside `strategy.scope()`, of an optimizer that is built.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy, optimizer: keras.optimizers.Optimizer, config: Optimizer
    ) -> None:
        self._extended = strategy.extended
        self._config = config
        self._iterations = optimizer.iterations.value
        self._weights = [variable.value for variable in optimizer._trainable_variables]
        self._slots = self._slots_of(optimizer)

    def factors(self, rate: tf.Tensor) -> dict[str, tf.Tensor]:
        """What is the same for all weights of one replica; call it there. rate: scalar of the weights' dtype."""
        config = self._config
        found = {"lr": rate}
        if isinstance(config, AdamConfig | AdamWConfig):
            steps = tf.cast(self._iterations + 1, rate.dtype)
            found["beta1_power"] = tf.pow(tf.cast(config.beta_1, rate.dtype), steps)
            found["beta2_power"] = tf.pow(tf.cast(config.beta_2, rate.dtype), steps)
        if isinstance(config, AdamWConfig):
            found["decay"] = rate * config.weight_decay
        return found

    def apply(self, gradients: list[Any], factors: dict[str, Any]) -> None:
        """Update weights and slots where they lie; call it outside the replicas.

        gradients: one a weight, equal on all replicas, of the weights' dtype; factors: each replica's own.
        """
        if isinstance(self._config, AdamWConfig):  # before the update (Loshchilov and Hutter 2019, algorithm 2)
            for weight in self._weights:
                self._extended.update(weight, _shrink, args=(factors["decay"],), group=False)
        for weight, gradient, slots in zip(self._weights, gradients, self._slots, strict=True):
            self._extended.update(weight, self._update, args=(gradient, slots, factors), group=False)
        self._iterations.assign_add(1)

    def _slots_of(self, optimizer: keras.optimizers.Optimizer) -> list[dict[str, tf.Variable]]:
        """The slots of each weight, by the names that the kernels give them."""
        match self._config:
            case AdamConfig() | AdamWConfig():
                slots = {"m": optimizer._momentums, "v": optimizer._velocities}
                if self._config.amsgrad:
                    slots["vhat"] = optimizer._velocity_hats
            case SGDConfig():
                slots = {"accum": optimizer.momentums} if self._config.momentum else {}
            case RMSpropConfig():
                slots = {"ms": optimizer._velocities}
                if self._config.momentum:
                    slots["mom"] = optimizer._momentums
                if self._config.centered:
                    slots["mg"] = optimizer._average_gradients
        found = [{name: each[index].value for name, each in slots.items()} for index in range(len(self._weights))]
        if isinstance(self._config, RMSpropConfig) and not self._config.momentum:
            # The kernel keeps the step in a slot that Keras does not have without momentum, and never reads it.
            # Weights of one shape share one. (One without a shape for all would mislead constant folding.)
            shapes, dtype = [tuple(weight.shape) for weight in self._weights], self._weights[0].dtype
            spares = {shape: tf.Variable(tf.zeros(shape, dtype), trainable=False) for shape in dict.fromkeys(shapes)}
            found = [{**slots, "mom": spares[shape]} for slots, shape in zip(found, shapes, strict=True)]
        return found

    def _update(
        self, weight: tf.Variable, gradient: tf.Tensor, slots: dict[str, tf.Variable], factors: dict[str, tf.Tensor]
    ) -> tf.Operation:
        """On one device."""
        config, ops = self._config, tf.raw_ops
        handles = {name: slot.handle for name, slot in slots.items()}
        scalars = {name: factor for name, factor in factors.items() if name != "decay"}
        shared = {"var": weight.handle, "grad": gradient, **handles, **scalars}
        match config:
            case AdamConfig() | AdamWConfig():
                kernel = ops.ResourceApplyAdamWithAmsgrad if config.amsgrad else ops.ResourceApplyAdam
                return kernel(**shared, beta1=config.beta_1, beta2=config.beta_2, epsilon=config.epsilon)
            case SGDConfig(momentum=0.0):
                return ops.ResourceApplyGradientDescent(var=weight.handle, alpha=factors["lr"], delta=gradient)
            case SGDConfig():
                return ops.ResourceApplyKerasMomentum(**shared, momentum=config.momentum, use_nesterov=config.nesterov)
            case RMSpropConfig():
                kernel = ops.ResourceApplyCenteredRMSProp if config.centered else ops.ResourceApplyRMSProp
                return kernel(**shared, rho=config.rho, momentum=config.momentum, epsilon=config.epsilon)


def _shrink(weight: tf.Variable, decay: tf.Tensor) -> tf.Operation:
    return tf.raw_ops.ResourceApplyGradientDescent(var=weight.handle, alpha=decay, delta=weight)

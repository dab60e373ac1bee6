"""Parts of a network whose activations are computed a second time on the way back instead of being kept."""

from typing import Any

import keras
import tensorflow as tf


class Rematerialized(keras.layers.Layer):
    """A part of a network that keeps nothing but its inputs for the gradient (Chen et al. 2016).

    Call with the list of the part's inputs; returns its output. The second forward pass computes what the first did:
    dropout is keyed by step and sample, and what it would do to moving statistics is dropped. (`tf.recompute_grad` and
    `keras.remat` draw a second mask and move the statistics twice.) Such layers are for training and are never saved.
    """

    def __init__(self, part: keras.Model) -> None:
        super().__init__(dtype=part.layers[-1].dtype_policy, name=f"{part.name}_rematerialized")
        self.part = part

    def call(self, inputs: list[tf.Tensor], training: bool | None = None) -> tf.Tensor:
        part = self.part
        if not training:
            return part(inputs, training=False)
        weights = [tf.convert_to_tensor(variable.value) for variable in part.trainable_variables]
        statistics = [tf.convert_to_tensor(variable.value) for variable in part.non_trainable_variables]
        count = len(inputs)

        def run(arguments: Any) -> Any:
            """Output and moved statistics."""
            return part.stateless_call(list(arguments[count:]), statistics, list(arguments[:count]), training=True)

        @tf.custom_gradient
        def forward(*arguments: tf.Tensor) -> Any:
            output, moved = run(arguments)

            def backward(gradient: tf.Tensor, *of_statistics: tf.Tensor) -> Any:
                # Tied to the gradient that arrives: without this TensorFlow would run the second pass beside the
                # first, or find the two to be one computation and keep what it made.
                with tf.control_dependencies([gradient]):
                    again = [tf.identity(argument) for argument in arguments]
                with tf.GradientTape() as tape:
                    tape.watch(again)
                    output, _ = run(again)
                return tape.gradient(output, again, output_gradients=gradient)

            return [output, *moved], backward

        results = forward(*inputs, *weights)
        for variable, value in zip(part.non_trainable_variables, results[1:], strict=True):
            variable.assign(value)
        return results[0]

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.part.compute_output_shape(input_shape)

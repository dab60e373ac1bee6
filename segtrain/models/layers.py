"""Layers of our own, and initial weights: padding and cropping, a convolution of joined tensors.

Layers are registered under the package name `segtrain`, so that `keras.models.load_model` reads a saved `.keras` file
once `segtrain.models.build` is imported.
"""

import hashlib
from typing import Any

import keras
import tensorflow as tf


def layer_seed(seed: int, name: str) -> int:
    """A 31-bit seed for one layer, from the model's seed and the layer's name.

    Names, not build order: a layer more or less leaves the initial weights of the others alone.
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def he_normal(seed: int, name: str) -> keras.initializers.Initializer:
    """He et al. 2015, equation 10: standard deviation sqrt(2 / fan in), for layers followed by ReLU."""
    return keras.initializers.HeNormal(seed=layer_seed(seed, name))


def _mirrored(size: tf.Tensor, before: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
    """Indices -before .. size + after - 1, folded back into 0 .. size - 1 as between two mirrors."""
    index = tf.math.floormod(tf.range(-before, size + after), 2 * size)
    return tf.minimum(index, 2 * size - 1 - index)


def _margins(size: Any, multiple: int) -> tuple[Any, Any]:
    """Pixels to add before and after `size` to reach the next multiple; works on ints and int tensors."""
    missing = -size % multiple
    return missing // 2, missing - missing // 2


def _height_width(x: tf.Tensor) -> tuple[Any, Any]:
    """Height and width of (B, H, W, C): ints where the shape is known while tracing, else int32 scalars."""
    known, traced = x.shape, tf.shape(x)
    return known[1] or traced[1], known[2] or traced[2]


@keras.saving.register_keras_serializable(package="segtrain")
class PadToMultiple(keras.layers.Layer):
    """Mirror the borders of (B, H, W, C) outwards until height and width are multiples of `multiple`.

    Mirrored rather than constant or repeated pixels: what is added has the texture and edges of a real picture, so the
    network sees nothing at the border that it was not trained on. A picture smaller than the margin is mirrored as
    often as it takes, which `tf.pad` refuses.
    """

    def __init__(self, multiple: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.multiple = multiple

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for axis, size in enumerate(_height_width(x), start=1):
            before, after = _margins(size, self.multiple)
            if isinstance(size, int) and before + after == 0:
                continue
            x = tf.gather(x, _mirrored(size, before, after), axis=axis)
        return x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "multiple": self.multiple}


@keras.saving.register_keras_serializable(package="segtrain")
class CropLike(keras.layers.Layer):
    """Cut what `PadToMultiple(multiple)` added to `picture` off `x`, which has the padded size.

    Call with x (B, H', W', C) and picture (B, H, W, any); returns (B, H, W, C).
    """

    def __init__(self, multiple: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.multiple = multiple

    def call(self, x: tf.Tensor, picture: tf.Tensor) -> tf.Tensor:
        height, width = _height_width(picture)
        top, _ = _margins(height, self.multiple)
        left, _ = _margins(width, self.multiple)
        return x[:, top : top + height, left : left + width, :]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "multiple": self.multiple}


@keras.saving.register_keras_serializable(package="segtrain")
class JoinedConv2D(keras.layers.Conv2D):
    """The convolution of several tensors joined along the channels, without joining them.

    Call with a list of (B, H, W, C_i); one kernel (h, w, sum C_i, filters), as `Conv2D` after `Concatenate` has. The
    joined tensor and its gradient would be the two largest of a U-Net.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.input_spec = None  # Keras's own asks for one tensor

    def build(self, input_shape: list[Any]) -> None:
        self._channels = [shape[-1] for shape in input_shape]
        super().build((*input_shape[0][:-1], sum(self._channels)))
        self.input_spec = None

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        kernels = tf.split(tf.convert_to_tensor(self.kernel), self._channels, axis=2)
        parts = [
            tf.nn.conv2d(x, kernel, self.strides, self.padding.upper())
            for x, kernel in zip(inputs, kernels, strict=True)
        ]
        joined = sum(parts[1:], parts[0])
        return tf.nn.bias_add(joined, tf.convert_to_tensor(self.bias)) if self.use_bias else joined

    def compute_output_shape(self, input_shape: Any) -> Any:
        # `build` of the parent asks with one shape, Keras with a list of them.
        return super().compute_output_shape(input_shape[0] if isinstance(input_shape, list) else input_shape)

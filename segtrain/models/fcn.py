"""The strided fully convolutional network, without skips: what the 2023 article compares its U-Net with.

The article ("Image Segmentation: An In-Depth Guide", E. Izaguirre, October 2023) was not at hand, only its scores and
that it strides instead of pooling. So this is the plain form: each level a 3x3 convolution of stride 2 and one of
stride 1, twice the channels a level, then its mirror image in transposed convolutions; ReLU after each, no norm.
"""

from typing import Any

import keras

from segtrain.config import FCNConfig
from segtrain.models.layers import PadToMultiple, he_normal, logits_head


def build_fcn(config: FCNConfig, channels: int, dtype: keras.DTypePolicy, seed: int) -> keras.Model:
    """See `segtrain.models.build_model`."""

    def layer(kind: Any, x: Any, filters: int, strides: int, name: str) -> Any:
        return kind(
            filters,
            3,
            strides=strides,
            padding="same",
            activation="relu",
            kernel_initializer=he_normal(seed, name),
            dtype=dtype,
            name=name,
        )(x)

    multiple = 2**config.depth
    picture = keras.Input((None, None, channels), dtype=dtype.variable_dtype, name="picture")
    x = PadToMultiple(multiple, dtype=dtype, name="pad")(picture)
    for level in range(config.depth):
        filters = config.filters * 2**level
        x = layer(keras.layers.Conv2D, x, filters, 2, f"down{level}_strided")
        x = layer(keras.layers.Conv2D, x, filters, 1, f"down{level}_conv")
    for level in reversed(range(config.depth)):
        filters = config.filters * 2**level
        x = layer(keras.layers.Conv2DTranspose, x, filters, 1, f"up{level}_conv")
        x = layer(keras.layers.Conv2DTranspose, x, filters, 2, f"up{level}_strided")
    return keras.Model(picture, logits_head(x, picture, multiple, dtype, seed), name="fcn")

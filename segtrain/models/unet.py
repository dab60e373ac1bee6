"""The U-Net of Ronneberger, Fischer and Brox 2015, with padded convolutions and the choices of `UNetConfig`.

Level i has `filters * 2**i` channels. A block is `convolutions` times (3x3 convolution, normalization, ReLU). Between
blocks the picture halves on the way down and doubles on the way up, where the block of the same size on the way down
is joined along the channels. A 1x1 convolution makes the logits.
"""

from dataclasses import dataclass
from typing import Any

import keras

from segtrain.config import UNetConfig
from segtrain.models.batch_norm import BatchNorm
from segtrain.models.blocks import Dropout, PadToMultiple, he_normal, logits_head


@dataclass(frozen=True)
class _Builder:
    """The parts of one network; each method adds named layers after `x` and returns their output."""

    config: UNetConfig
    dtype: keras.DTypePolicy
    seed: int

    def convolution(self, x: Any, filters: int, name: str, *, size: int = 3, strides: int = 1) -> Any:
        return keras.layers.Conv2D(
            filters,
            size,
            strides,
            padding="same",
            kernel_initializer=he_normal(self.seed, name),
            dtype=self.dtype,
            name=name,
        )(x)

    def norm(self, x: Any, name: str) -> Any:
        config = self.config
        if config.norm == "none":
            return x
        if config.norm == "group":
            return keras.layers.GroupNormalization(config.norm_groups, dtype=self.dtype, name=name)(x)
        return BatchNorm(config.norm == "synchronized", config.norm_momentum, dtype=self.dtype, name=name)(x)

    def relu(self, x: Any, name: str) -> Any:
        return keras.layers.ReLU(dtype=self.dtype, name=name)(x)

    def block(self, x: Any, filters: int, level: int, name: str, layer_index: int) -> Any:
        """(B, H, W, any) -> (B, H, W, filters)."""
        shortcut = x
        for number in range(1, self.config.convolutions + 1):
            x = self.convolution(x, filters, f"{name}_conv{number}")
            x = self.norm(x, f"{name}_norm{number}")
            if self.config.residual and number == self.config.convolutions:
                if shortcut.shape[-1] != filters:
                    shortcut = self.convolution(shortcut, filters, f"{name}_shortcut", size=1)
                x = keras.layers.Add(dtype=self.dtype, name=f"{name}_add")([x, shortcut])
            x = self.relu(x, f"{name}_relu{number}")
        dropout = self.config.dropout
        rate = dropout[level] if isinstance(dropout, tuple) else dropout
        if rate == 0.0:
            return x
        return Dropout(rate, self.seed, layer_index, dtype=self.dtype, name=f"{name}_dropout")(x)

    def down(self, x: Any, name: str) -> Any:
        """Half the height and width; the strided convolution is one more unit of convolution, norm and ReLU."""
        if self.config.down == "max_pool":
            return keras.layers.MaxPooling2D(2, dtype=self.dtype, name=f"{name}_pool")(x)
        x = self.convolution(x, x.shape[-1], f"{name}_strided", strides=2)
        return self.relu(self.norm(x, f"{name}_strided_norm"), f"{name}_strided_relu")

    def up(self, x: Any, filters: int, name: str) -> Any:
        """Twice the height and width, with `filters` channels.

        `resize` repeats pixels and convolves (Odena, Dumoulin and Olah 2016): TensorFlow's bilinear resize works in
        float32 alone, which would break float64, and the convolution smooths anyway.
        """
        if self.config.up == "resize":
            x = keras.layers.UpSampling2D(2, interpolation="nearest", dtype=self.dtype, name=f"{name}_resize")(x)
            return self.convolution(x, filters, f"{name}_resized")
        return keras.layers.Conv2DTranspose(
            filters,
            3 if self.config.up == "transpose_3x3" else 2,
            strides=2,
            padding="same",
            kernel_initializer=he_normal(self.seed, f"{name}_transpose"),
            dtype=self.dtype,
            name=f"{name}_transpose",
        )(x)


def build_unet(config: UNetConfig, channels: int, dtype: keras.DTypePolicy, seed: int) -> keras.Model:
    """See `segtrain.models.build_model`."""
    parts = _Builder(config, dtype, seed)
    multiple = 2**config.depth
    picture = keras.Input((None, None, channels), dtype=dtype.variable_dtype, name="picture")
    x = PadToMultiple(multiple, dtype=dtype, name="pad")(picture)
    skips = []
    for level in range(config.depth):
        x = parts.block(x, config.filters * 2**level, level, f"down{level}", level)
        skips.append(x)
        x = parts.down(x, f"down{level}")
    x = parts.block(x, config.filters * multiple, config.depth, "bottom", config.depth)
    for level in reversed(range(config.depth)):
        filters = config.filters * 2**level
        x = parts.up(x, filters, f"up{level}")
        x = keras.layers.Concatenate(dtype=dtype, name=f"up{level}_join")([skips[level], x])
        x = parts.block(x, filters, level, f"up{level}", 2 * config.depth - level)
    return keras.Model(picture, logits_head(x, picture, multiple, dtype, seed), name="unet")

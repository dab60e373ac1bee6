"""The U-Net of Ronneberger, Fischer and Brox 2015, with padded convolutions and the choices of `UNetConfig`.

Level i has `filters * 2**i` channels. A block is `convolutions` times (3x3 convolution, normalization, ReLU). Between
blocks the picture halves on the way down and doubles on the way up, where the block of the same size on the way down
is joined along the channels. A 1x1 convolution makes the logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

from segtrain.config import UNetConfig
from segtrain.models.batch_norm import BatchNorm
from segtrain.models.layers import Dropout, JoinedConv2D, PadToMultiple, he_normal, logits_head
from segtrain.models.rematerialize import Rematerialized


@dataclass(frozen=True)
class _Builder:
    """The parts of one network; each method adds named layers after `x` and returns their output."""

    config: UNetConfig
    dtype: keras.DTypePolicy
    seed: int
    rematerialize: bool

    def part(self, name: str, make: Callable[..., Any], *inputs: Any) -> Any:
        """`make(*inputs)`: layers of the network itself, or one layer that computes them again on the way back."""
        if not self.rematerialize:
            return make(*inputs)
        ends = [keras.Input(x.shape[1:], dtype=x.dtype) for x in inputs]
        return Rematerialized(keras.Model(ends, make(*ends), name=name))(list(inputs))

    def convolution(self, x: Any, filters: int, name: str, *, size: int = 3, strides: int = 1) -> Any:
        """Of one tensor, or of several as if they were joined along the channels."""
        kind = JoinedConv2D if isinstance(x, list) else keras.layers.Conv2D
        return kind(
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

    def block(self, x: Any, *, level: int, name: str, layer_index: int, first: int = 1, last: int | None = None) -> Any:
        """Units `first` to `last` of a block: (B, H, W, any) -> (B, H, W, filters * 2**level)."""
        config, filters = self.config, self.config.filters * 2**level
        shortcut = x
        for number in range(first, (last or config.convolutions) + 1):
            x = self.convolution(x, filters, f"{name}_conv{number}")
            x = self.norm(x, f"{name}_norm{number}")
            if config.residual and number == config.convolutions:
                if isinstance(shortcut, list) or shortcut.shape[-1] != filters:
                    shortcut = self.convolution(shortcut, filters, f"{name}_shortcut", size=1)
                x = keras.layers.Add(dtype=self.dtype, name=f"{name}_add")([x, shortcut])
            x = self.relu(x, f"{name}_relu{number}")
        rate = config.dropout[level] if isinstance(config.dropout, tuple) else config.dropout
        if rate == 0.0 or (last or config.convolutions) < config.convolutions:
            return x
        return Dropout(rate, self.seed, layer_index, dtype=self.dtype, name=f"{name}_dropout")(x)

    def up_block(self, skip: Any, x: Any, *, level: int) -> Any:
        """(B, H, W, C) from the way down and (B, H/2, W/2, 2 C) from below -> (B, H, W, C), C = filters * 2**level."""
        config, name = self.config, f"up{level}"
        units = partial(self.block, level=level, name=name, layer_index=2 * config.depth - level)

        def joined(skip: Any, x: Any, last: int | None = None) -> Any:
            return units([skip, self.up(x, config.filters * 2**level, name)], last=last)

        if level or config.residual or config.convolutions == 1:
            return self.part(name, joined, skip, x)
        # Half of what a network keeps is at its top: there each half of the block is computed again on its own.
        x = self.part(f"{name}_joined", partial(joined, last=1), skip, x)
        return self.part(name, partial(units, first=2), x)

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


def build_unet(
    config: UNetConfig, channels: int, dtype: keras.DTypePolicy, seed: int, rematerialize: bool = False
) -> keras.Model:
    """See `segtrain.models.build_model`."""
    parts = _Builder(config, dtype, seed, rematerialize)
    multiple = 2**config.depth
    picture = keras.Input((None, None, channels), dtype=dtype.variable_dtype, name="picture")
    x = PadToMultiple(multiple, dtype=dtype, name="pad")(picture)
    skips = []
    for level in range(config.depth):
        x = parts.part(f"down{level}", partial(parts.block, level=level, name=f"down{level}", layer_index=level), x)
        skips.append(x)
        x = parts.down(x, f"down{level}")
    bottom = partial(parts.block, level=config.depth, name="bottom", layer_index=config.depth)
    x = parts.part("bottom", bottom, x)
    for level in reversed(range(config.depth)):
        x = parts.up_block(skips[level], x, level=level)
    return keras.Model(picture, logits_head(x, picture, multiple, dtype, seed), name="unet")

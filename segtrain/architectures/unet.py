"""The U-Net of Ronneberger, Fischer and Brox 2015, with padded convolutions and the choices of `UNetConfig`.

Level i has `filters * 2**i` channels. A block is `convolutions` times (3x3 convolution, normalization, ReLU). Between
blocks the picture halves on the way down and doubles on the way up. There the block of the same size on the way down is
joined along the channels.
"""

from segtrain.architectures.layer_records import (
    AddUp,
    Convolve,
    DropOut,
    LayerList,
    NormalizeBatch,
    NormalizeGroups,
    PoolMax,
    Rectify,
    RepeatPixels,
)
from segtrain.config import UNetConfig


def unet(net: LayerList, config: UNetConfig, x: str) -> str:
    """Add the layers from padded pictures to the last features, and return the last one's name."""
    skips = []
    for level in range(config.depth):
        net.part = f"down{level}"
        x = _block(net, config, level, f"down{level}", x)
        skips.append(x)
        net.part = None
        x = _down(net, config, level, x)
    net.part = "bottom"
    x = _block(net, config, config.depth, "bottom", x)
    # Half of what a network keeps is at its top: there each half of the block is computed again on its own.
    halves = config.convolutions > 1 and not config.residual
    for level in reversed(range(config.depth)):
        net.part = f"up{level}_joined" if halves and level == 0 else f"up{level}"
        x = _up(net, config, level, x)
        x = _block(net, config, level, f"up{level}", skips[level], x)
    return x


def _block(net: LayerList, config: UNetConfig, level: int, name: str, *inputs: str) -> str:
    """(B, H, W, any) -> (B, H, W, filters * 2**level)."""
    filters = config.filters * 2**level
    into = inputs
    for number in range(1, config.convolutions + 1):
        x = net.add(f"{name}_conv{number}", Convolve(filters, bias=_has_bias(config)), *into)
        x = _norm(net, config, f"{name}_norm{number}", x)
        if config.residual and number == config.convolutions:
            shortcut = inputs[0]
            # The picture alone may have the channels of the block already.
            if name != "down0" or net.channels != filters:
                shortcut = net.add(f"{name}_shortcut", Convolve(filters, size=1), *inputs)
            x = net.add(f"{name}_add", AddUp(), x, shortcut)
        x = net.add(f"{name}_relu{number}", Rectify(), x)
        into = (x,)
        net.part = name
    rate = config.dropout[level] if isinstance(config.dropout, tuple) else config.dropout
    if rate == 0.0:
        return x
    layer_index = 2 * config.depth - level if name.startswith("up") else level
    return net.add(f"{name}_dropout", DropOut(rate, layer_index), x)


def _has_bias(config: UNetConfig) -> bool:
    """Of a convolution that the norm follows: batch norm subtracts each channel's mean, and a bias with it."""
    return config.bias_before_norm or config.norm in ("none", "group")


def _norm(net: LayerList, config: UNetConfig, name: str, x: str) -> str:
    if config.norm == "none":
        return x
    if config.norm == "group":
        return net.add(name, NormalizeGroups(config.norm_groups), x)
    return net.add(name, NormalizeBatch(config.norm == "synchronized", config.norm_momentum), x)


def _down(net: LayerList, config: UNetConfig, level: int, x: str) -> str:
    """Half the height and width; the strided convolution is one more unit of convolution, norm and ReLU."""
    if config.down == "max_pool":
        return net.add(f"down{level}_pool", PoolMax(), x)
    strided = Convolve(config.filters * 2**level, strides=2, bias=_has_bias(config))
    x = net.add(f"down{level}_strided", strided, x)
    return net.add(f"down{level}_strided_relu", Rectify(), _norm(net, config, f"down{level}_strided_norm", x))


def _up(net: LayerList, config: UNetConfig, level: int, x: str) -> str:
    """Twice the height and width, with the channels of the level.

    `resize` repeats pixels and convolves (Odena, Dumoulin and Olah 2016): TensorFlow's bilinear resize works in float32
    alone, which would break float64, and the convolution smooths anyway.
    """
    filters = config.filters * 2**level
    if config.up == "resize":
        x = net.add(f"up{level}_resize", RepeatPixels(), x)
        return net.add(f"up{level}_resized", Convolve(filters), x)
    size = 3 if config.up == "transpose_3x3" else 2
    return net.add(f"up{level}_transpose", Convolve(filters, size, strides=2, transposed=True), x)

"""Every network as a list of layers, in plain Python: a driver without TensorFlow reads it too.

`segtrain.models.build` makes Keras layers of the records, and `segtrain.memory.operations` works out their memory. Each
of the two refuses a kind of layer that it does not know.

The U-Net is that of Ronneberger, Fischer and Brox 2015, with padded convolutions and the choices of `UNetConfig`. Level
i has `filters * 2**i` channels. A block is `convolutions` times (3x3 convolution, normalization, ReLU). Between blocks
the picture halves on the way down and doubles on the way up, where the block of the same size on the way down is joined
along the channels.

The fully convolutional network (FCN) has no skips. It is what the 2023 article ("Image Segmentation: An In-Depth
Guide", E. Izaguirre, October 2023) compares its U-Net with. The article was not at hand, only its scores and that it
strides instead of pooling. So this is the plain form: each level a 3x3 convolution of stride 2 and one of stride 1,
twice the channels a level, then its mirror image in transposed convolutions; ReLU after each, no norm.
"""

from dataclasses import dataclass, field

from segtrain.config import FCNConfig, Model, UNetConfig

PICTURE = "picture"
"""Name of what goes into a network."""


@dataclass(frozen=True)
class Pad:
    """Mirror the borders outwards until height and width are multiples of `multiple`."""

    multiple: int


@dataclass(frozen=True)
class Convolve:
    """A convolution with a bias; several inputs count as joined along the channels."""

    filters: int
    size: int = 3
    strides: int = 1
    transposed: bool = False
    relu: bool = False
    """Whether a ReLU is part of the layer."""


@dataclass(frozen=True)
class NormalizeBatch:
    """Batch norm."""

    synchronized: bool
    momentum: float


@dataclass(frozen=True)
class NormalizeGroups:
    """Group norm."""

    groups: int


@dataclass(frozen=True)
class Rectify:
    """ReLU."""


@dataclass(frozen=True)
class AddUp:
    """The sum of two inputs of one size."""


@dataclass(frozen=True)
class DropOut:
    """Dropout, with a number of its own in the network that its masks are drawn from."""

    rate: float
    layer_index: int


@dataclass(frozen=True)
class PoolMax:
    """Half the height and width, the largest of each four pixels."""


@dataclass(frozen=True)
class RepeatPixels:
    """Twice the height and width, without new values."""


@dataclass(frozen=True)
class MakeLogits:
    """A 1x1 convolution to one channel, in the dtype of the variables.

    That is float32 under mixed precision: half precision would round each logit to three digits, and losses and metrics
    start from them.
    """


@dataclass(frozen=True)
class CropBack:
    """Cut what `Pad(multiple)` added to the second input off the first."""

    multiple: int


Kind = (
    Pad
    | Convolve
    | NormalizeBatch
    | NormalizeGroups
    | Rectify
    | AddUp
    | DropOut
    | PoolMax
    | RepeatPixels
    | MakeLogits
    | CropBack
)


@dataclass(frozen=True)
class LayerRecord:
    """One layer of a network."""

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    """Names of the layers that it reads, or `PICTURE`."""
    part: str | None = None
    """What is computed again as one under rematerialization; what follows reads only the last layer of a part."""


@dataclass
class _Network:
    """The layers so far; whatever adds some returns the name of the last."""

    channels: int
    """Of the pictures."""
    part: str | None = None
    """Of the layers that are added next."""
    layers: list[LayerRecord] = field(default_factory=list)

    def add(self, name: str, kind: Kind, *inputs: str) -> str:
        self.layers.append(LayerRecord(name, kind, inputs, self.part))
        return name


def layer_list(config: Model, channels: int) -> list[LayerRecord]:
    """The layers from pictures (B, H, W, channels) to logits (B, H, W, 1), each after those that it reads."""
    net = _Network(channels)
    x = net.add("pad", Pad(2**config.depth), PICTURE)
    x = _fcn(net, config, x) if isinstance(config, FCNConfig) else _unet(net, config, x)
    net.part = None
    x = net.add("logits", MakeLogits(), x)
    net.add("crop", CropBack(2**config.depth), x, PICTURE)
    return net.layers


def _fcn(net: _Network, config: FCNConfig, x: str) -> str:
    for level in range(config.depth):
        filters = config.filters * 2**level
        x = net.add(f"down{level}_strided", Convolve(filters, strides=2, relu=True), x)
        x = net.add(f"down{level}_conv", Convolve(filters, relu=True), x)
    for level in reversed(range(config.depth)):
        filters = config.filters * 2**level
        x = net.add(f"up{level}_conv", Convolve(filters, transposed=True, relu=True), x)
        x = net.add(f"up{level}_strided", Convolve(filters, strides=2, transposed=True, relu=True), x)
    return x


def _unet(net: _Network, config: UNetConfig, x: str) -> str:
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


def _block(net: _Network, config: UNetConfig, level: int, name: str, *inputs: str) -> str:
    """(B, H, W, any) -> (B, H, W, filters * 2**level)."""
    filters = config.filters * 2**level
    into = inputs
    for number in range(1, config.convolutions + 1):
        x = net.add(f"{name}_conv{number}", Convolve(filters), *into)
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


def _norm(net: _Network, config: UNetConfig, name: str, x: str) -> str:
    if config.norm == "none":
        return x
    if config.norm == "group":
        return net.add(name, NormalizeGroups(config.norm_groups), x)
    return net.add(name, NormalizeBatch(config.norm == "synchronized", config.norm_momentum), x)


def _down(net: _Network, config: UNetConfig, level: int, x: str) -> str:
    """Half the height and width; the strided convolution is one more unit of convolution, norm and ReLU."""
    if config.down == "max_pool":
        return net.add(f"down{level}_pool", PoolMax(), x)
    x = net.add(f"down{level}_strided", Convolve(config.filters * 2**level, strides=2), x)
    return net.add(f"down{level}_strided_relu", Rectify(), _norm(net, config, f"down{level}_strided_norm", x))


def _up(net: _Network, config: UNetConfig, level: int, x: str) -> str:
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

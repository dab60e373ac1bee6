"""A network as a list of operations: what each reads and makes, what its gradient needs again, and its scratch space.

The lists follow `segtrain/models/` layer by layer; tests compare parameters and shapes with the built layers.
"""

from dataclasses import dataclass, field

from segtrain.config import FCNConfig, Model, UNetConfig
from segtrain.memory.kernels import Convolution, Kernels

MASK_BYTES = 1
FLOAT32 = 4


@dataclass(frozen=True, eq=False)
class Tensor:
    """One buffer on the device: (B, height, width, channels)."""

    name: str
    batch: int
    height: int
    width: int
    channels: int
    itemsize: int
    """Bytes an element."""

    @property
    def pixels(self) -> int:
        return self.batch * self.height * self.width

    @property
    def elements(self) -> int:
        return self.pixels * self.channels

    @property
    def bytes(self) -> int:
        return self.elements * self.itemsize


@dataclass(frozen=True, eq=False)
class Operation:
    """One step of the forward pass, usually a layer, with what its gradient takes."""

    name: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    keeps: tuple[Tensor, ...] = ()
    """What the gradient needs again; `output` may be among it."""
    trainable: int = 0
    """Parameters that the optimizer changes."""
    moving: int = 0
    """Parameters that it does not: moving statistics."""
    in_place: bool = False
    """Output, and on the way back the gradient, may take over the buffer of what they come from."""
    forward_scratch: int = 0
    """Bytes, besides inputs and output, while it runs."""
    backward_scratch: int = 0
    """Bytes, besides what comes in and what comes out, while its gradient is computed."""
    stops_gradient: bool = False
    """No gradient goes on to its inputs: they are pictures."""
    late: bool = False
    """The gradient of its weights takes about as long as that of its input, and nothing waits for it."""
    block: str | None = None
    """What is recomputed as one under rematerialization."""


@dataclass
class OperationList:
    """The operations of one forward pass, in order."""

    picture: Tensor
    """float32 (B, H, W, channels), as it comes from the augmentation."""
    logits: Tensor
    """(B, H, W, 1)."""
    operations: list[Operation]

    @property
    def trainable(self) -> int:
        return sum(operation.trainable for operation in self.operations)

    @property
    def moving(self) -> int:
        return sum(operation.moving for operation in self.operations)


@dataclass
class _Writer:
    """Adds operations one after another; every method returns the tensor that the layer makes."""

    kernels: Kernels
    itemsize: int
    """Of activations."""
    wide: int
    """Bytes of a float where half precision does not do: of variables, logits and statistics."""
    operations: list[Operation] = field(default_factory=list)
    block: str | None = None

    def add(self, name: str, inputs: tuple[Tensor, ...], output: Tensor, **facts: object) -> Tensor:
        operation = Operation(name, inputs, output, block=self.block, **facts)  # type: ignore[arg-type]
        self.operations.append(operation)
        return output

    def like(self, x: Tensor, name: str, **changes: int) -> Tensor:
        facts = {"height": x.height, "width": x.width, "channels": x.channels, "itemsize": x.itemsize, **changes}
        return Tensor(name, x.batch, **facts)

    def pad(self, picture: Tensor, multiple: int) -> Tensor:
        """Cast to the network's precision, then mirrored rows, then mirrored columns, each of them a copy."""
        x = picture
        if self.itemsize < x.itemsize:
            x = self.add("cast", (x,), self.like(x, "cast", itemsize=self.itemsize), stops_gradient=True)
        height, width = (-(-size // multiple) * multiple for size in (x.height, x.width))
        if height != x.height:
            x = self.add("pad", (x,), self.like(x, "pad", height=height), stops_gradient=True)
        if width != x.width:
            x = self.add("pad", (x,), self.like(x, "pad", width=width), stops_gradient=True)
        return x

    def convolution(
        self, x: Tensor, filters: int, name: str, *, size: int = 3, strides: int = 1, transposed: bool = False
    ) -> Tensor:
        """With its bias, which is added in place."""
        sides = (x.height, x.width)
        height, width = (side * strides if transposed else -(-side // strides) for side in sides)
        output = self.like(x, name, height=height, width=width, channels=filters)
        first = not self.operations or self.operations[-1].stops_gradient
        shape = _shape(x, output, size, transposed)
        to_output, to_input = self.kernels.forward(shape), self.kernels.to_input(shape)
        if transposed:
            to_output, to_input = to_input, to_output
        return self.add(
            name,
            (x,),
            output,
            keeps=(x,),
            trainable=size * size * x.channels * filters + filters,
            forward_scratch=to_output,
            backward_scratch=self.kernels.to_weights(shape) + (0 if first else to_input),
            late=True,
            stops_gradient=first,
        )

    def joined_convolution(self, parts: tuple[Tensor, ...], filters: int, name: str, *, size: int = 3) -> Tensor:
        """Of several tensors as if they were joined along the channels: the sum of a convolution of each."""
        output = self.like(parts[0], name, channels=filters)
        shapes = [_shape(x, output, size) for x in parts]
        scratch = sorted(
            kernel(shape) for shape in shapes for kernel in (self.kernels.to_weights, self.kernels.to_input)
        )
        return self.add(
            name,
            parts,
            output,
            keeps=parts,
            trainable=size * size * sum(x.channels for x in parts) * filters + filters,
            forward_scratch=output.bytes + sum(self.kernels.forward(shape) for shape in shapes),
            backward_scratch=sum(scratch[-2:]),
            late=True,
        )

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        """The statistics come from a square of `x`, which is gone before there is a result.

        Half precision is widened for that, and in the gradient; in float64 there is no fused kernel.
        """
        output = self.like(x, name)
        square = self.wide * x.elements * (2 if x.itemsize < self.wide else 1)
        return self.add(
            name,
            (x,),
            output,
            keeps=(x,),
            trainable=2 * x.channels,
            moving=2 * x.channels,
            forward_scratch=max(0, square - output.bytes),
            backward_scratch=0 if x.itemsize == FLOAT32 else self.wide * x.elements,
        )

    def group_norm(self, x: Tensor, name: str) -> Tensor:
        """Keras's computes in float32 at least, out of separate operations; their gradient keeps what they made."""
        wide = self.like(x, name, itemsize=max(self.wide, FLOAT32))
        scratch = 2 * wide.bytes
        return self.add(
            name,
            (x,),
            self.like(x, f"{name}_normalized"),
            keeps=(x, wide) if wide.itemsize > x.itemsize else (x,),
            trainable=2 * x.channels,
            forward_scratch=scratch,
            backward_scratch=2 * scratch,
        )

    def relu(self, x: Tensor, name: str) -> Tensor:
        output = self.like(x, name)
        return self.add(name, (x,), output, keeps=(output,), in_place=True)

    def dropout(self, x: Tensor, name: str) -> Tensor:
        """The mask is kept; it is drawn in float32, a picture at a time."""
        mask = self.like(x, f"{name}_mask", itemsize=MASK_BYTES)
        drawn = 3 * FLOAT32 * x.elements // x.batch
        return self.add(name, (x,), self.like(x, name), keeps=(mask,), forward_scratch=drawn)

    def max_pool(self, x: Tensor, name: str) -> Tensor:
        output = self.like(x, name, height=x.height // 2, width=x.width // 2)
        scratch = self.kernels.max_pool_to_input(output.elements, output.itemsize)
        return self.add(name, (x,), output, keeps=(x, output), backward_scratch=scratch)

    def repeat(self, x: Tensor, name: str) -> Tensor:
        return self.add(name, (x,), self.like(x, name, height=2 * x.height, width=2 * x.width))

    def add_up(self, left: Tensor, right: Tensor, name: str) -> Tensor:
        return self.add(name, (left, right), self.like(left, name), in_place=True)

    def head(self, x: Tensor, picture: Tensor) -> Tensor:
        """Logits in the dtype of the variables, cut to the picture's size."""
        if self.itemsize < self.wide:
            x = self.add("logits_cast", (x,), self.like(x, "logits_cast", itemsize=self.wide))
        x = self.convolution(x, 1, "logits", size=1)
        if (x.height, x.width) == (picture.height, picture.width):
            return x
        return self.add("crop", (x,), self.like(x, "crop", height=picture.height, width=picture.width))


def network(
    config: Model, *, batch: int, height: int, width: int, channels: int, precision: str, kernels: Kernels
) -> OperationList:
    """The operations of the network that `segtrain.models.build_model(config)` builds, for pictures of this size."""
    half = precision.startswith("mixed_")
    wide = 8 if precision == "float64" else 4
    picture = Tensor("picture", batch, height, width, channels, wide)
    writer = _Writer(kernels, itemsize=2 if half else wide, wide=wide)
    build = _fcn if isinstance(config, FCNConfig) else _unet
    return OperationList(picture, build(config, writer, picture), writer.operations)  # type: ignore[arg-type]


def _unet(config: UNetConfig, writer: _Writer, picture: Tensor) -> Tensor:
    x = writer.pad(picture, 2**config.depth)
    skips = []
    for level in range(config.depth):
        writer.block = f"down{level}"
        x = _block(config, writer, x, level, f"down{level}")
        skips.append(x)
        writer.block = None
        if config.down == "max_pool":
            x = writer.max_pool(x, f"down{level}_pool")
        else:
            x = writer.convolution(x, x.channels, f"down{level}_strided", strides=2)
            x = writer.relu(_norm(config, writer, x, f"down{level}_strided_norm"), f"down{level}_strided_relu")
    writer.block = "bottom"
    x = _block(config, writer, x, config.depth, "bottom")
    for level in reversed(range(config.depth)):
        writer.block = f"up{level}_joined"
        x = _up(config, writer, x, config.filters * 2**level, f"up{level}")
        x = _block(config, writer, (skips[level], x), level, f"up{level}")
    writer.block = None
    return writer.head(x, picture)


def _block(config: UNetConfig, writer: _Writer, x: Tensor | tuple[Tensor, ...], level: int, name: str) -> Tensor:
    filters = config.filters * 2**level
    shortcut = x
    for number in range(1, config.convolutions + 1):
        x = _convolution(writer, x, filters, f"{name}_conv{number}")
        x = _norm(config, writer, x, f"{name}_norm{number}")
        if config.residual and number == config.convolutions:
            if isinstance(shortcut, tuple) or shortcut.channels != filters:
                shortcut = _convolution(writer, shortcut, filters, f"{name}_shortcut", size=1)
            x = writer.add_up(x, shortcut, f"{name}_add")
        x = writer.relu(x, f"{name}_relu{number}")
        if name == "up0" and number == 1 and not config.residual and config.convolutions > 1:
            writer.block = name  # what comes after the first unit at the top is computed again on its own
    assert isinstance(x, Tensor)
    rate = config.dropout[level] if isinstance(config.dropout, tuple) else config.dropout
    return writer.dropout(x, f"{name}_dropout") if rate else x


def _convolution(writer: _Writer, x: Tensor | tuple[Tensor, ...], filters: int, name: str, *, size: int = 3) -> Tensor:
    if isinstance(x, tuple):
        return writer.joined_convolution(x, filters, name, size=size)
    return writer.convolution(x, filters, name, size=size)


def _norm(config: UNetConfig, writer: _Writer, x: Tensor, name: str) -> Tensor:
    if config.norm == "none":
        return x
    return writer.group_norm(x, name) if config.norm == "group" else writer.batch_norm(x, name)


def _up(config: UNetConfig, writer: _Writer, x: Tensor, filters: int, name: str) -> Tensor:
    if config.up == "resize":
        return writer.convolution(writer.repeat(x, f"{name}_resize"), filters, f"{name}_resized")
    size = 3 if config.up == "transpose_3x3" else 2
    return writer.convolution(x, filters, f"{name}_transpose", size=size, strides=2, transposed=True)


def _fcn(config: FCNConfig, writer: _Writer, picture: Tensor) -> Tensor:
    x = writer.pad(picture, 2**config.depth)
    for level in range(config.depth):
        filters = config.filters * 2**level
        x = writer.relu(writer.convolution(x, filters, f"down{level}_strided", strides=2), f"down{level}_strided_relu")
        x = writer.relu(writer.convolution(x, filters, f"down{level}_conv"), f"down{level}_conv_relu")
    for level in reversed(range(config.depth)):
        filters = config.filters * 2**level
        for name, strides in ((f"up{level}_conv", 1), (f"up{level}_strided", 2)):
            x = writer.relu(writer.convolution(x, filters, name, strides=strides, transposed=True), f"{name}_relu")
    return writer.head(x, picture)


def _shape(x: Tensor, output: Tensor, size: int, transposed: bool = False) -> Convolution:
    narrow, wide = (x, output) if transposed else (output, x)
    return Convolution(
        batch=x.batch,
        output_pixels=narrow.height * narrow.width,
        output_channels=narrow.channels,
        input_channels=wide.channels,
        window=size * size,
        itemsize=x.itemsize,
    )

"""A network as a list of operations: what each reads and makes, what its gradient needs again, and its scratch space.

The layers are those of `segtrain.architectures.layer_list`, from which the Keras models are built too.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from segtrain.architectures.layer_list import layer_list
from segtrain.architectures.layer_records import (
    PICTURE,
    AddUp,
    Convolve,
    CropBack,
    DropOut,
    LayerRecord,
    MakeLogits,
    NormalizeBatch,
    NormalizeGroups,
    Pad,
    PoolMax,
    Rectify,
    RepeatPixels,
)
from segtrain.config import Model
from segtrain.memory.kernels import FLOAT32, Kernels, Tensor

MASK_BYTES = 1
INDEX_BYTES = 8


@dataclass(frozen=True, eq=False)
class Operation:
    """One step of the forward pass, usually a layer, with what its gradient takes."""

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
    part: str | None = None
    """What is computed again as one under rematerialization."""


@dataclass
class OperationList:
    """The operations of one forward pass in order, as far as they are added.

    Every method that adds some returns the tensor that is made last.
    """

    picture: Tensor
    """float32 (B, H, W, channels), as it comes from the augmentation; float64 under that precision.

    Variables, logits and statistics are as wide, because half precision does not do for them.
    """
    kernels: Kernels
    itemsize: int
    """Of activations."""
    operations: list[Operation] = field(default_factory=list)
    part: str | None = None
    """Of the operations that are added next."""

    @property
    def trainable(self) -> int:
        return sum(operation.trainable for operation in self.operations)

    @property
    def moving(self) -> int:
        return sum(operation.moving for operation in self.operations)

    def apply(self, layer: LayerRecord, inputs: tuple[Tensor, ...]) -> Tensor:
        """What a layer makes of its inputs; it may take several operations, or none."""
        x, name = inputs[0], layer.name
        like = replace(x, name=name)
        match layer.kind:
            case Pad(multiple):
                return self.pad(x, multiple)
            case Convolve() as kind:
                output = self.convolution(inputs, kind, name)
                return self.relu(output, f"{name}_relu") if kind.relu else output
            case NormalizeBatch():
                return self.batch_norm(x, name)
            case NormalizeGroups():
                return self.group_norm(x, name)
            case Rectify():
                return self.relu(x, name)
            case AddUp():
                return self.add(inputs, like, in_place=True)
            case DropOut():
                # The mask is kept; it is drawn in float32, a picture at a time.
                mask = replace(x, name=f"{name}_mask", itemsize=MASK_BYTES)
                return self.add(inputs, like, keeps=(mask,), forward_scratch=3 * FLOAT32 * x.elements // x.batch)
            case PoolMax():
                output = replace(like, height=x.height // 2, width=x.width // 2)
                # On the way back the maxima are found again, and where each of them was.
                scratch = output.elements * (output.itemsize + INDEX_BYTES)
                return self.add(inputs, output, keeps=(x, output), backward_scratch=scratch)
            case RepeatPixels():
                return self.add(inputs, replace(like, height=2 * x.height, width=2 * x.width))
            case MakeLogits():
                if self.itemsize < self.picture.itemsize:
                    x = self.add(inputs, replace(x, name="logits_cast", itemsize=self.picture.itemsize))
                return self.convolution((x,), Convolve(1, size=1), name)
            case CropBack():
                height, width = inputs[1].height, inputs[1].width
                cut = (x.height, x.width) != (height, width)
                return self.add((x,), replace(like, height=height, width=width)) if cut else x
        raise TypeError(f"{name}: segtrain.memory.operations has no bytes for {type(layer.kind).__name__}")

    def add(self, inputs: tuple[Tensor, ...], output: Tensor, **facts: Any) -> Tensor:
        self.operations.append(Operation(inputs, output, part=self.part, **facts))
        return output

    def pad(self, picture: Tensor, multiple: int) -> Tensor:
        """Cast to the network's precision, then mirrored rows, then mirrored columns, each of them a copy."""
        height, width = (-(-size // multiple) * multiple for size in (picture.height, picture.width))
        x = picture
        for change in ({"itemsize": self.itemsize}, {"height": height}, {"width": width}):
            changed = replace(x, name="pad", **change)
            if changed.bytes != x.bytes:
                x = self.add((x,), changed, stops_gradient=True)
        return x

    def convolution(self, inputs: tuple[Tensor, ...], kind: Convolve, name: str) -> Tensor:
        """A bias is added in place; of several inputs it is the sum of a convolution of each."""
        x, kernels = inputs[0], self.kernels
        sides = (x.height, x.width)
        height, width = (side * kind.strides if kind.transposed else -(-side // kind.strides) for side in sides)
        output = replace(x, name=name, height=height, width=width, channels=kind.filters)
        # A transposed convolution is the gradient of one that goes the other way.
        pairs = [(output, x) if kind.transposed else (x, output) for x in inputs]
        forward = [kernels.forward(narrow) for _, narrow in pairs]
        gradient = [kernels.gradient(wide, narrow, window=kind.size**2) for wide, narrow in pairs]
        to_output, to_input = (gradient, forward) if kind.transposed else (forward, gradient)
        first = not self.operations or self.operations[-1].stops_gradient
        scratch = sorted(gradient if first else gradient + to_input)  # no more than two run at once
        second = output.bytes if len(inputs) > 1 else 0
        return self.add(
            inputs,
            output,
            keeps=inputs,
            trainable=(kind.size**2 * sum(x.channels for x in inputs) + kind.bias) * kind.filters,
            forward_scratch=second + sum(to_output),
            backward_scratch=sum(scratch[-2:]),
            late=True,
            stops_gradient=first,
        )

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        """The statistics come from a square of `x`, which is gone before there is a result.

        Half precision is widened for that, and in the gradient; in float64 there is no fused kernel.
        """
        square = self.picture.itemsize * x.elements * (2 if x.itemsize < self.picture.itemsize else 1)
        return self.add(
            (x,),
            replace(x, name=name),
            keeps=(x,),
            trainable=2 * x.channels,
            moving=2 * x.channels,
            forward_scratch=square - x.bytes,
            backward_scratch=0 if x.itemsize == FLOAT32 else self.picture.itemsize * x.elements,
        )

    def group_norm(self, x: Tensor, name: str) -> Tensor:
        """Keras's computes in float32 at least, out of separate operations; their gradient keeps what they made."""
        wide = replace(x, name=f"{name}_wide", itemsize=max(self.picture.itemsize, FLOAT32))
        return self.add(
            (x,),
            replace(x, name=name),
            keeps=(x, wide) if wide.itemsize > x.itemsize else (x,),
            trainable=2 * x.channels,
            forward_scratch=2 * wide.bytes,
            backward_scratch=4 * wide.bytes,
        )

    def relu(self, x: Tensor, name: str) -> Tensor:
        output = replace(x, name=name)
        return self.add((x,), output, keeps=(output,), in_place=True)


def network(
    config: Model, *, batch: int, height: int, width: int, channels: int, precision: str, kernels: Kernels
) -> OperationList:
    """The operations of the network that `build_model(config)` builds, for pictures of this size."""
    picture = Tensor(PICTURE, batch, height, width, channels, 8 if precision == "float64" else FLOAT32)
    net = OperationList(picture, kernels, 2 if precision.startswith("mixed_") else picture.itemsize)
    made = {PICTURE: picture}
    for layer in layer_list(config, channels):
        net.part = layer.part
        made[layer.name] = net.apply(layer, tuple(made[name] for name in layer.inputs))
    return net

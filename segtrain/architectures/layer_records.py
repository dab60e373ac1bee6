"""What a network is made of: records of layers in plain Python, without TensorFlow."""

from dataclasses import dataclass, field

PICTURE = "picture"
"""Name of what goes into a network."""


@dataclass(frozen=True)
class Pad:
    """Mirror the borders outwards until height and width are multiples of `multiple`."""

    multiple: int


@dataclass(frozen=True)
class Convolve:
    """A convolution; several inputs count as joined along the channels."""

    filters: int
    size: int = 3
    strides: int = 1
    transposed: bool = False
    bias: bool = True
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


DROPOUT_DRAWS = 2
"""Raise it with every change to which units are dropped. Checkpoints name it; those that do not were written before the
draws were compiled."""


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
class LayerList:
    """The layers of a network, as far as they are added; whatever adds some returns the name of the last."""

    channels: int
    """Of the pictures."""
    part: str | None = None
    """Of the layers that are added next."""
    layers: list[LayerRecord] = field(default_factory=list)

    def add(self, name: str, kind: Kind, *inputs: str) -> str:
        """Add a layer that reads `inputs`, and return its name."""
        self.layers.append(LayerRecord(name, kind, inputs, self.part))
        return name

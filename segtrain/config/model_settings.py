"""Settings of the networks: U-Net and FCN."""

from typing import Annotated, Literal, Self

from pydantic import Field, Tag, model_validator

from segtrain.config.section import Count, Fraction, Section, by_kind


class UNetConfig(Section):
    """A U-Net: `depth` levels down and up, with `filters` channels at the top and twice as many at each level below."""

    kind: Literal["unet"] = "unet"
    """Selects this network."""
    filters: Count = 16
    """Channels at the top level."""
    depth: Annotated[int, Field(ge=1, le=8)] = 4
    """Number of down-samplings. The bottleneck has `filters * 2**depth` channels."""
    convolutions: Count = 2
    """Convolutions in each block."""
    norm: Literal["none", "batch", "synchronized", "group"] = "synchronized"
    """What follows each convolution: nothing, batch norm in a replica, batch norm over all replicas, or group norm."""
    bias_before_norm: bool = False
    """Give convolutions a bias where batch norm follows, which takes it off again. Runs from before this setting do."""
    norm_groups: Count = 8
    """Number of groups of channels in group norm. It must divide `filters`."""
    norm_momentum: Fraction = 0.99
    """Share of its moving statistics that batch norm keeps at each step. 0.9 suits runs of a few hundred steps."""
    dropout: Fraction | Annotated[tuple[Fraction, ...], Field(strict=False)] = 0.0
    """Dropout rate after each block: one for all, or a list of `depth + 1` from the top level to the bottleneck."""
    down: Literal["max_pool", "strided"] = "max_pool"
    """How a level is made half as large: by max pooling, or by a convolution of stride 2."""
    up: Literal["transpose_2x2", "transpose_3x3", "resize"] = "transpose_3x3"
    """How a level is made twice as large: by a transposed convolution of either size, or by resizing."""
    residual: bool = False
    """Add each block's input, through a 1x1 convolution where the channels differ, to its output."""

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if isinstance(self.dropout, tuple) and len(self.dropout) != self.depth + 1:
            raise ValueError(f"dropout has {len(self.dropout)} rates; depth {self.depth} needs {self.depth + 1}")
        if self.norm == "group" and self.filters % self.norm_groups:
            raise ValueError(f"norm_groups {self.norm_groups} does not divide filters {self.filters}")
        return self


class FCNConfig(Section):
    """The 2023 article's first network: strided convolutions down, transposed convolutions up, no skips."""

    kind: Literal["fcn"] = "fcn"
    """Selects this network."""
    filters: Count = 64
    """Channels at the first level. Each level below has twice as many."""
    depth: Annotated[int, Field(ge=1, le=8)] = 3
    """Number of down-samplings."""


Model = Annotated[Annotated[UNetConfig, Tag("unet")] | Annotated[FCNConfig, Tag("fcn")], by_kind("unet")]

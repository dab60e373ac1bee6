"""Settings of the optimizers, and of the schedules of their learning rate."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from segtrain.config.section import Count, Fraction, Positive, Section, by_kind


class AdamConfig(Section):
    """Adam."""

    kind: Literal["adam"] = "adam"
    """Selects this optimizer."""
    learning_rate: Positive = 1e-3
    """Learning rate, before the schedule."""
    beta_1: Fraction = 0.9
    """Share of the gradients' moving average that a step keeps."""
    beta_2: Fraction = 0.999
    """Share of the squared gradients' moving average that a step keeps."""
    epsilon: Positive = 1e-7
    """Small number added to the denominator of an update."""
    amsgrad: bool = False
    """Use the AMSGrad variant, which divides by the largest average so far."""


class AdamWConfig(Section):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    """Selects this optimizer."""
    learning_rate: Positive = 1e-3
    """Learning rate, before the schedule."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 4e-3
    """Share of the weights, times the learning rate, that is taken off at each step."""
    beta_1: Fraction = 0.9
    """Share of the gradients' moving average that a step keeps."""
    beta_2: Fraction = 0.999
    """Share of the squared gradients' moving average that a step keeps."""
    epsilon: Positive = 1e-7
    """Small number added to the denominator of an update."""
    amsgrad: bool = False
    """Use the AMSGrad variant, which divides by the largest average so far."""


class SGDConfig(Section):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    """Selects this optimizer."""
    learning_rate: Positive = 1e-2
    """Learning rate, before the schedule."""
    momentum: Fraction = 0.0
    """Share of the last update that the next one keeps."""
    nesterov: bool = False
    """Use Nesterov's momentum."""


class RMSpropConfig(Section):
    """RMSprop."""

    kind: Literal["rmsprop"] = "rmsprop"
    """Selects this optimizer."""
    learning_rate: Positive = 1e-3
    """Learning rate, before the schedule."""
    rho: Fraction = 0.9
    """Share of the squared gradients' moving average that a step keeps."""
    momentum: Fraction = 0.0
    """Share of the last update that the next one keeps."""
    epsilon: Positive = 1e-7
    """Small number added to the denominator of an update."""
    centered: bool = False
    """Divide by the gradients' estimated variance instead of their mean square."""


Optimizer = Annotated[
    Annotated[AdamConfig, Tag("adam")]
    | Annotated[AdamWConfig, Tag("adamw")]
    | Annotated[SGDConfig, Tag("sgd")]
    | Annotated[RMSpropConfig, Tag("rmsprop")],
    by_kind("adam"),
]


class ConstantSchedule(Section):
    """The same rate throughout, after a linear warm-up."""

    kind: Literal["constant"] = "constant"
    """Selects this schedule."""
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    """Epochs in which the rate rises linearly from 0."""


class CosineSchedule(Section):
    """Linear warm-up, then half a cosine down to `final_fraction` of the rate at the last epoch."""

    kind: Literal["cosine"] = "cosine"
    """Selects this schedule."""
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    """Epochs in which the rate rises linearly from 0."""
    final_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Fraction of `optimizer.learning_rate` that is left at the end."""
    horizon_epochs: Count | None = None
    """Epochs until the end of the cosine. By default `train.epochs`."""


class PlateauSchedule(Section):
    """Linear warm-up, then the rate is multiplied by `factor` after `patience_epochs` without a better dice."""

    kind: Literal["plateau"] = "plateau"
    """Selects this schedule."""
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    """Epochs in which the rate rises linearly from 0."""
    factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Factor by which the rate falls."""
    patience_epochs: Count = 3
    """Epochs without a better dice after which the rate falls."""
    min_fraction: Fraction = 0.01
    """The rate never falls below this fraction of `optimizer.learning_rate`."""


Schedule = Annotated[
    Annotated[ConstantSchedule, Tag("constant")]
    | Annotated[CosineSchedule, Tag("cosine")]
    | Annotated[PlateauSchedule, Tag("plateau")],
    by_kind("constant"),
]

"""Optimizers from settings, and the learning rate of a step."""

import math

import keras

from segtrain.config import (
    AdamConfig,
    AdamWConfig,
    CosineSchedule,
    Optimizer,
    PlateauSchedule,
    RMSpropConfig,
    Schedule,
    SGDConfig,
)

_OPTIMIZERS = {
    AdamConfig: keras.optimizers.Adam,
    AdamWConfig: keras.optimizers.AdamW,
    SGDConfig: keras.optimizers.SGD,
    RMSpropConfig: keras.optimizers.RMSprop,
}


def build_optimizer(config: Optimizer) -> keras.optimizers.Optimizer:
    """A Keras optimizer with every setting of `config`; its rate is a variable that the training step may assign.

    As in Keras, AdamW's decay touches every trainable weight, biases and normalization included.
    """
    return _OPTIMIZERS[type(config)](**config.model_dump(exclude={"kind"}))


def learning_rate(
    schedule: Schedule, base: float, step: int, steps_per_epoch: int, epochs: int, plateau_fraction: float = 1.0
) -> float:
    """The rate of optimizer update `step`, counted from 0 over the whole run.

    Warm-up rises linearly and reaches `base` on its last step, never 0. The cosine (Loshchilov and Hutter 2017, without
    restarts) starts after it and stays at `final_fraction` past its horizon. `plateau_fraction` is what the plateau
    rule has left of the rate so far; other schedules ignore it.
    """
    warmup = schedule.warmup_epochs * steps_per_epoch
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if isinstance(schedule, CosineSchedule):
        end = (schedule.horizon_epochs or epochs) * steps_per_epoch
        progress = min(1.0, max(0.0, step - warmup) / max(1.0, end - warmup))
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return base * rise * (schedule.final_fraction + (1.0 - schedule.final_fraction) * cosine)
    if isinstance(schedule, PlateauSchedule):
        return base * rise * max(plateau_fraction, schedule.min_fraction)
    return base * rise

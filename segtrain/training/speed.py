"""How fast a recipe's step, input and loop are on this cluster, measured in the workers that would train it."""

import resource
import sys
import time

import tensorflow as tf

from segtrain.config import Recipe
from segtrain.runs.status import Account, Driver, Left, Speed, World
from segtrain.training.clock import Watch
from segtrain.training.loop import Leaving, train_epoch
from segtrain.training.run import Run
from segtrain.training.step import read_results

WARM_STEPS = 4
"""Steps and batches that are not counted: the first one compiles, and some lie ready."""


def measure(recipe: Recipe, world: World, driver: Driver, *, steps: int) -> Speed:
    """Train `steps` steps, take the step alone as often, then the input alone. Every worker calls this.

    Raises what `segtrain.training.loop.train` raises.
    """
    began, before_bytes = time.perf_counter(), _peak_bytes(world)
    with Run(recipe, world, driver.claim) as run:
        watch = Watch(recipe, run.state.cursor, run.training_data.steps_per_epoch, driver, began_at=began)
        warm = _train_until(run, watch, driver, WARM_STEPS)
        loop_began = time.perf_counter()
        trained = _train_until(run, watch, driver, warm.step + steps)
        loop_s, taken = time.perf_counter() - loop_began, trained.step - warm.step
        return Speed(
            start_s=trained.starting_s,
            loop_s=loop_s / taken,
            input_wait_s=(trained.input_wait_s - warm.input_wait_s) / taken,
            step_s=_step_s(run, driver, steps),
            input_s=_input_s(run, driver, steps),
            peak_bytes=_peak_bytes(world) - before_bytes,
            device=_device(world),
        )


def _train_until(run: Run, watch: Watch, driver: Driver, step: int) -> Account:
    """Train until `step` steps are taken, over as many epochs as that takes, and some more until all have agreed."""
    cursor = run.state.cursor
    leaving = Driver(wants_to_leave=lambda: cursor.step >= step or driver.wants_to_leave())
    while cursor.step < step:
        try:
            train_epoch(run, watch, leaving)
            cursor.start_epoch(cursor.epoch + 1)
        except Leaving:
            if cursor.step < step:
                raise Left(cursor.step) from None
    account = watch.account()
    assert account is not None
    return account


def _step_s(run: Run, driver: Driver, steps: int) -> float:
    """Seconds of a step on one batch that lies on the devices."""
    batch = next(run.batches)
    began = 0.0
    for number in range(WARM_STEPS + steps):
        result = run.step(batch.replicas, number, 0.0, whole=batch.is_whole)
        if number + 1 == WARM_STEPS:
            read_results([result])
            began = time.perf_counter()
        driver.beat()
    read_results([result])
    return (time.perf_counter() - began) / steps


def _input_s(run: Run, driver: Driver, steps: int) -> float:
    """Seconds until this worker's part of a batch lies on its devices, where nothing else is to be done."""
    began = 0.0
    for number in range(WARM_STEPS + steps):
        if number == WARM_STEPS:
            began = time.perf_counter()
        next(run.batches)
        driver.beat()
    return (time.perf_counter() - began) / steps


def _peak_bytes(world: World) -> int:
    """The most memory that a device has held: the first GPU, or this process where there is none."""
    if world.gpus_per_worker:
        peak: int = tf.config.experimental.get_memory_info("GPU:0")["peak"]
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device(world: World) -> str:
    if not world.gpus_per_worker:
        return "CPU"
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
    return str(details.get("device_name", "GPU"))

"""How fast a recipe's step, input and loop are on this cluster, measured in the workers that would train it."""

import functools
from dataclasses import dataclass
from typing import Any, cast

from segtrain.config import Recipe
from segtrain.errors import counted, gib
from segtrain.launch.preflight import PreparedRun, prepared
from segtrain.launch.train_run import run_on
from segtrain.launch.train_worker import Train
from segtrain.runs.status import Driver, Progress, Speed, World

NAME_SUFFIX = "-bench"
"""Of the folder beside the run's own that the measurement takes place in. It is removed afterwards."""


@dataclass(frozen=True)
class Measured:
    """What a bench came to."""

    recipe: Recipe
    """With the batch that fits."""
    pixels: int
    """Of one picture or crop as the network sees it."""
    predicted_bytes: int
    """Of a step on one replica."""
    speed: Speed
    """By the chief."""

    def values(self) -> dict[str, Any]:
        """Names with their units, for a line of JSON."""
        speed, batch = self.speed, self.recipe.train.global_batch_size
        rates = {"step": speed.step_s, "input": speed.input_s, "loop": speed.loop_s}
        return {
            "device": speed.device,
            "replicas": self.recipe.cluster.max_workers * self.recipe.cluster.replicas_per_worker,
            "global_batch_size": batch,
            "start_s": round(speed.start_s, 2),
            **{f"{name}_ms": round(1e3 * seconds, 3) for name, seconds in rates.items()},
            **{f"{name}_images_per_s": round(batch / seconds, 2) for name, seconds in rates.items()},
            "loop_megapixels_per_s": round(batch * self.pixels / speed.loop_s / 1e6, 2),
            "input_wait_share": round(speed.input_wait_s / speed.loop_s, 4),
            "predicted_bytes": self.predicted_bytes,
            "measured_bytes": speed.peak_bytes,
        }

    def lines(self) -> list[str]:
        """The same as a table of text."""
        found = self.values()
        replicas = counted(self.recipe.cluster.replicas_per_worker, "replica")
        peak = gib(self.speed.peak_bytes)
        grown = f"the process of {replicas} grew by {peak}"
        measured = grown if found["device"] == "CPU" else f"the first GPU of a worker held {peak} at most"
        megapixels = self.pixels / 1e6
        table = [
            f"{name:9} {found[f'{name}_ms']:10,.1f} ms  {found[f'{name}_images_per_s']:10,.1f} pictures/s  "
            f"{found[f'{name}_images_per_s'] * megapixels:10,.1f} megapixels/s"
            for name in ("step", "input", "loop")
        ]
        return [
            f"device    {found['device']}, {counted(found['replicas'], 'replica')} in all, "
            f"{found['global_batch_size']} pictures a step",
            f"start     {found['start_s']:10,.1f} s to the end of the first step",
            *table,
            f"waiting   {found['input_wait_share']:10.1%} of the loop's time is spent waiting for input",
            f"memory    {gib(self.predicted_bytes)} a replica predicted; {measured}",
        ]


def bench(recipe: Recipe, *, steps: int) -> Measured:
    """Measure a recipe on its own cluster, over `steps` steps each. Raises what `train_run.launch` raises."""
    run = prepared(recipe.updated({"run.name": recipe.run.name + NAME_SUFFIX, "train.epochs": 1_000_000}))
    try:
        train = cast(Train, functools.partial(_measure, steps=steps))  # whose result is handed on as it is
        speed, fitted = run_on(_Notes(), run, train)
    finally:
        run.storage.delete(run.recipe.run.folder)
    return Measured(fitted, _pixels(run), run.fitted.footprint.total, cast(Speed, speed))


class _Notes:
    """A display of what happens, without the progress of a run that nobody wants to keep."""

    def show(self, progress: Progress) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)


def _pixels(run: PreparedRun) -> int:
    data = run.fitted.recipe.data
    return (data.height or run.size.height) * (data.width or run.size.width)


def _measure(recipe: Recipe, world: World, driver: Driver, *, steps: int) -> Speed:
    """TensorFlow is imported here, in the worker."""
    from segtrain.training.speed import measure

    return measure(recipe, world, driver, steps=steps)

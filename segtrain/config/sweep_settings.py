"""A sweep: what is searched, how points are chosen, which trials are stopped, and what it may cost."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from segtrain.config.section import Count, Positive, Section, Seed
from segtrain.config.texts import Location

KINDS = ("choice", "grid", "uniform", "loguniform", "quniform")


class Axis(Section):
    """The values of one field, or of several fields joined by commas (`data.height,data.width`) that move together.

    Exactly one of `choice`, `grid`, `uniform`, `loguniform` and `quniform` is given.
    """

    choice: Annotated[tuple[Any, ...], Field(strict=False, min_length=1)] | None = None
    """List of values to choose from: scalars, whole sections, or for joined fields a list of one value each."""
    grid: Annotated[tuple[Any, ...], Field(strict=False, min_length=1)] | None = None
    """The same as `choice`. The name goes with `tune.search: grid`, which tries each combination once."""
    uniform: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """Range `[lowest, highest]`."""
    loguniform: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """Range `[lowest, highest]`, both above 0, in which each factor of ten is as likely as any other."""
    quniform: Annotated[tuple[float, float, float], Field(strict=False)] | None = None
    """Range `[lowest, highest, step]`. It holds whole numbers if all three are whole."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Fields with a value, or a list of values, that they must have for this axis to be searched. They may be searched
    themselves, above this axis. Elsewhere the recipe's own value stays."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}; there are {len(given)}")
        for kind in ("uniform", "loguniform", "quniform"):
            bounds = getattr(self, kind)
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"{kind} [{bounds[0]:g}, {bounds[1]:g}] is the wrong way round; put the lower first")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform starts at {self.loguniform[0]:g}; it must be above 0")
        if self.quniform is not None and not 0 < self.quniform[2] <= self.quniform[1] - self.quniform[0]:
            raise ValueError(f"quniform has a step of {self.quniform[2]:g}; it must be above 0 and within the range")
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """The values to choose among; None for a range."""
        return self.choice if self.choice is not None else self.grid


class TuneConfig(Section):
    """How `jobs/tune.py` searches. A trial is one run of the recipe with a point of `space` put in."""

    space: dict[str, Axis] = Field(default_factory=dict)
    """Fields to search, each with an axis: `model.filters: {choice: [16, 32]}`. Conditions see the axes above theirs.
    All values of a point are put into the recipe as one change."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """How points are chosen. `tpe` is Optuna's sampler after `startup_trials`; `grid` tries each combination of choices
    once."""
    startup_trials: Count = 6
    """Number of random points before TPE begins."""
    seed: Seed = 0
    """Seed of the search."""
    start_from: Annotated[tuple[Location, ...], Field(strict=False)] = ()
    """Recipes or folders of runs whose values are tried first."""
    stop: Literal["asha", "median", "none"] = "asha"
    """Which trials end early: `asha` ends those outside the best 1/`reduction` at a rung, `median` those below the
    median."""
    clock: Literal["epochs", "gpu_s"] = "epochs"
    """What trials are compared at: equal epochs, or equal seconds of training times replicas."""
    grace: Positive = 1.0
    """Least that every trial gets, in units of `clock`. It is the first rung of ASHA."""
    reduction: Annotated[float, Field(gt=1.0)] = 3.0
    """Factor from one rung of ASHA to the next. One trial in this number passes each rung."""
    max_trials: Count = 20
    """Most trials of the sweep."""
    max_hours: Positive | None = None
    """Hours after which the sweep ends, all its attempts together. Trials that still run are stopped."""
    max_gpu_hours: Positive | None = None
    """Hours of training times replicas, over all trials, after which the sweep ends. A logical CPU device counts as a
    GPU."""
    max_concurrent: Count | None = None
    """Most trials at once. By default as many as the cluster holds."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """Most times that a failed trial is tried again, from its newest checkpoint."""

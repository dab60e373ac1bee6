"""A sweep: what is searched, how points are chosen, which trials are stopped, and what it may cost."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from segtrain.config.settings import Count, Positive, Section, Seed
from segtrain.config.texts import Location

KINDS = ("choice", "grid", "uniform", "loguniform", "quniform")


class Axis(Section):
    """The values of one field, or of several joined by commas (`data.height,data.width`), which then move together.

    Exactly one of `choice`, `grid`, `uniform`, `loguniform` and `quniform` is given.
    """

    choice: Annotated[tuple[Any, ...], Field(strict=False, min_length=1)] | None = None
    """One of these: scalars, whole sections, or for joined fields a list of one value each."""
    grid: Annotated[tuple[Any, ...], Field(strict=False, min_length=1)] | None = None
    """The same; named for `tune.search: grid`, which tries each combination of choices and grids once."""
    uniform: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """[lowest, highest]"""
    loguniform: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """[lowest, highest], both above 0: each factor of ten is as likely as any other."""
    quniform: Annotated[tuple[float, float, float], Field(strict=False)] | None = None
    """[lowest, highest, step]: whole numbers where all three are."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Searched only where each of these fields has this value, or one of this list; it may be searched itself, above
    this axis. Elsewhere the recipe's own value stays."""

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
    """Field -> axis, such as `model.filters: {choice: [16, 32]}`; conditions see the axes above theirs. What all of
    them set is put into the recipe as one change."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """`tpe`: Optuna's sampler, from `startup_trials` on; `grid`: each combination of choices once."""
    startup_trials: Count = 6
    """So many random points before TPE has something to learn from."""
    seed: Seed = 0
    start_from: Annotated[tuple[Location, ...], Field(strict=False)] = ()
    """Recipes, or folders of runs, whose values are the first points to be tried."""
    stop: Literal["asha", "median", "none"] = "asha"
    """Which trials end early: those outside the best 1/`reduction` at a rung; those below the median; none."""
    clock: Literal["epochs", "gpu_s"] = "epochs"
    """What trials are compared at: equal epochs, or equal seconds of training x replicas."""
    grace: Positive = 1.0
    """No trial is stopped before; the first rung of ASHA. In units of `clock`."""
    reduction: Annotated[float, Field(gt=1.0)] = 3.0
    """Rungs of ASHA are this factor apart, and this part of the trials passes each."""
    max_trials: Count = 20
    max_hours: Positive | None = None
    """The sweep ends after so many hours, all its attempts together; what runs then is stopped."""
    max_gpu_hours: Positive | None = None
    """Likewise, in hours of training x replicas over all trials; a logical CPU device counts as a GPU."""
    max_concurrent: Count | None = None
    """Trials at once; as many as the cluster holds where nothing is given."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """So many times a trial that failed is tried again, from its newest checkpoint."""

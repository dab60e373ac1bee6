"""Which point comes next: starting points, a grid, or Optuna's samplers; infeasible points are left out on the way."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from segtrain.config import Recipe
from segtrain.errors import UserError
from segtrain.runs.trials import TRIAL_NAME, Trial, point_label, trial_folder
from segtrain.storage.files import join
from segtrain.tune import space
from segtrain.tune.sweep_record import SweepRecord

TRIES = 200
"""So many points in a row that were tried before, and the space counts as exhausted."""
INFEASIBLE_IN_A_ROW = 50
"""So many infeasible points in a row end the search."""


@dataclass(frozen=True)
class Verdict:
    """What is known of a point before it is launched."""

    recipe: Recipe | None
    """The trial's whole recipe; None where the point is infeasible."""
    reason: str = ""
    parameters: int = 0
    memory_bytes: int = 0

    def on(self, trial: Trial) -> Trial:
        """A new trial of the point, with what is known of it."""
        return Trial(trial.number, trial.point, "running", parameters=self.parameters, memory_bytes=self.memory_bytes)


class PointSearch(Searcher):
    """Gives Ray Tune the sweep's trials: those that an earlier attempt began, then new ones, `max_concurrent` at once.

    Each number has a random stream of its own, so that random points do not depend on how often the sweep was
    interrupted. `judge` says of a point, before anything is launched, what recipe it makes and whether that fits.
    """

    def __init__(
        self,
        recipe: Recipe,
        record: SweepRecord,
        judge: Callable[[int, space.Point], Verdict],
        *,
        max_concurrent: int,
        starts: Sequence[space.Point] = (),
    ) -> None:
        super().__init__(mode="max")  # with a metric, Tune would refuse the report of a failure, which has none
        self._recipe = recipe
        self._record = record
        self._judge = judge
        self._max_concurrent = max_concurrent
        self._live: dict[str, tuple[int, optuna.Trial]] = {}
        self._infeasible_in_a_row = 0
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
        for trial in record.trials:
            self._check_point(trial)
            if trial.is_over and trial.dice is not None and trial.status != "failed":
                self._learn(self._ask_for(trial.point), trial)
        planned = [*starts, *(space.grid(recipe) if recipe.tune.search == "grid" else ())]
        self._planned = deque(point for point in planned if space.key(point) not in self._tried())
        self._to_come = self._trials()

    @property
    def planned(self) -> int:
        """Trials that there will be if the budget lasts, infeasible ones left out."""
        most = self._recipe.tune.max_trials
        is_grid = self._recipe.tune.search == "grid"
        return min(most, self._record.launched + len(self._planned)) if is_grid else most

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Tune's config of the next trial; None while enough are running; FINISHED where there is none to come."""
        if len(self._live) >= self._max_concurrent:
            return None
        for trial, asked in self._to_come:
            verdict = self._judge(trial.number, trial.point)
            if verdict.recipe is None:
                self._rule_out(trial, asked, verdict)
                continue
            self._infeasible_in_a_row = 0
            if trial.attempts == 0:
                self._record.put_recipe(trial.number, verdict.recipe)
                self._record.put(verdict.on(trial))
            self._record.give_out(trial.number)
            if self._record.fault is not None:  # what is not recorded is not run
                break
            self._live[trial_id] = trial.number, asked
            return {
                "number": trial.number,
                "recipe": verdict.recipe.to_yaml(),
                "known_epochs": trial.epochs,
                "claim": self._record.token,
            }
        return str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Let the sampler learn from what the trial came to."""
        number, asked = self._live.pop(trial_id)
        trial = self._record[number]
        if trial.dice is None or trial.status == "failed" or error:
            self._study.tell(asked, state=TrialState.FAIL)
        else:
            self._learn(asked, trial)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own record has all that a resumed search needs."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def _trials(self) -> Iterator[tuple[Trial, optuna.Trial]]:
        """What is to be judged next, with Optuna's own trial of it: trials to go on with, then new ones."""
        for trial in self._record.to_resume():
            yield trial, self._ask_for(trial.point)
        for point, asked in self._points():
            yield Trial(self._record.next_number, point, "running"), asked

    def _points(self) -> Iterator[tuple[space.Point, optuna.Trial]]:
        """The planned points, then those that the sampler finds, until there are enough trials."""
        while self._record.launched < self._recipe.tune.max_trials:
            if self._planned:
                point = self._planned.popleft()
                yield point, self._ask_for(point)
                continue
            found = None if self._recipe.tune.search == "grid" else self._sampled()
            if found is None:
                return
            yield found

    def _ask_for(self, point: space.Point) -> optuna.Trial:
        """Optuna's trial of a point that is chosen already."""
        axes = self._recipe.tune.space
        self._study.enqueue_trial({name: space.encoded(axes[name], value) for name, value in point.items()})
        return self._study.ask({name: space.distribution(axes[name]) for name in point})

    def _sampled(self) -> tuple[space.Point, optuna.Trial] | None:
        """A point that was not tried before; None where the sampler finds no more."""
        tried = self._tried()
        for attempt in range(TRIES):
            self._study.sampler = self._sampler(attempt)
            asked = self._study.ask()
            point = space.choose(self._recipe, lambda name, axis, asked=asked: space.suggested(asked, name, axis))  # type: ignore[misc]
            if space.key(point) not in tried:
                return point, asked
            self._study.tell(asked, state=TrialState.FAIL)
        return None

    def _sampler(self, attempt: int) -> optuna.samplers.BaseSampler:
        config = self._recipe.tune
        seed = int(np.random.SeedSequence([config.seed, self._record.next_number, attempt]).generate_state(1)[0])
        if config.search == "random" or self._record.launched < config.startup_trials or attempt >= TRIES // 4:
            return optuna.samplers.RandomSampler(seed)
        # Points that are being tried count as bad ones, so that trials side by side do not crowd one spot.
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, constant_liar=True)

    def _tried(self) -> set[str]:
        return {space.key(trial.point) for trial in self._record.trials}

    def _rule_out(self, trial: Trial, asked: optuna.Trial, verdict: Verdict) -> None:
        """Keep an infeasible point. Raises UserError where there seem to be no others."""
        self._study.tell(asked, state=TrialState.FAIL)
        self._record.put(verdict.on(trial).ended("infeasible", verdict.reason))
        self._infeasible_in_a_row += 1
        if self._infeasible_in_a_row >= INFEASIBLE_IN_A_ROW:
            raise UserError(
                f"tune.space: {self._infeasible_in_a_row} points in a row are infeasible, the last of them "
                f"{point_label(trial.point)}: {verdict.reason}; search smaller values, or give the trials more "
                "(cluster.device_bytes)"
            )

    def _check_point(self, trial: Trial) -> None:
        """Raise UserError for a trial of an earlier attempt whose point is none of the space."""
        axes = self._recipe.tune.space
        try:
            for name, value in trial.point.items():
                space.distribution(axes[name]).to_internal_repr(space.encoded(axes[name], value))
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
            url = join(trial_folder(self._record.folder, trial.number), TRIAL_NAME)
            raise UserError(f"{url} holds a point that is none of tune.space ({name}); delete that folder") from None

    def _learn(self, asked: optuna.Trial, trial: Trial) -> None:
        """Tell the study what a trial that has a dice came to."""
        for scored in trial.history:
            asked.report(scored.dice, scored.epoch)
        if trial.status == "stopped":
            self._study.tell(asked, state=TrialState.PRUNED)
        else:
            self._study.tell(asked, trial.dice)

"""Which point comes next: starting points, a grid, or Optuna's samplers; infeasible points are left out on the way."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
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
        self._live: dict[str, int] = {}
        self._asked: dict[int, optuna.Trial] = {}
        self._infeasible_in_a_row = 0
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
        for trial in record.trials:
            self._check_point(trial)
            self._learn(trial)
        self._to_resume = deque(record.to_resume())
        planned = [*starts, *(space.grid(recipe) if recipe.tune.search == "grid" else ())]
        self._planned = deque(point for point in planned if space.key(point) not in self._tried())

    @property
    def planned(self) -> int:
        """Trials that there will be if the budget lasts, infeasible ones left out."""
        most = self._recipe.tune.max_trials
        if self._recipe.tune.search != "grid":
            return most
        return min(most, self._record.launched + len(self._planned))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Tune's config of the next trial; None while enough are running; FINISHED where there is none to come."""
        if len(self._live) >= self._max_concurrent:
            return None
        while True:
            trial = self._next()
            if trial is None:
                return str(Searcher.FINISHED)
            verdict = self._judge(trial.number, trial.point)
            if verdict.recipe is not None:
                break
            self._rule_out(trial, verdict)
        self._infeasible_in_a_row = 0
        if trial.attempts == 0:
            self._record.put_recipe(trial.number, verdict.recipe)
            self._record.put(verdict.on(trial))
        self._record.give_out(trial.number)
        if self._record.fault is not None:  # what is not recorded is not run
            return str(Searcher.FINISHED)
        self._live[trial_id] = trial.number
        return {
            "number": trial.number,
            "recipe": verdict.recipe.to_yaml(),
            "known_epochs": trial.epochs,
            "claim": self._record.token,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Let the sampler learn from what the trial came to."""
        number = self._live.pop(trial_id)
        trial, asked = self._record[number], self._asked.pop(number)
        if trial.dice is None or trial.status == "failed" or error:
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
            return
        for scored in trial.history:
            asked.report(scored.dice, scored.epoch)
        if trial.status == "stopped":
            self._study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(asked, trial.dice)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own record has all that a resumed search needs."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def _next(self) -> Trial | None:
        """The next trial to judge, with Optuna told of it; None where there is none."""
        if self._to_resume:
            trial = self._to_resume.popleft()
            self._asked[trial.number] = self._ask_for(trial.point)
            return trial
        if self._record.launched >= self._recipe.tune.max_trials:
            return None
        number = self._record.next_number
        if self._planned:
            point = self._planned.popleft()
            self._asked[number] = self._ask_for(point)
            return Trial(number, point, "running")
        if self._recipe.tune.search == "grid":
            return None
        return self._sampled(number)

    def _ask_for(self, point: space.Point) -> optuna.Trial:
        """Optuna's trial of a point that is chosen already."""
        axes = self._recipe.tune.space
        self._study.enqueue_trial({name: space.encoded(axes[name], value) for name, value in point.items()})
        asked = self._study.ask()
        for name in point:
            space.suggested(asked, name, axes[name])
        return asked

    def _sampled(self, number: int) -> Trial | None:
        """A point that was not tried before; None where the sampler finds no more."""
        tried = self._tried()
        for attempt in range(TRIES):
            self._study.sampler = self._sampler(number, attempt)
            asked = self._study.ask()
            point = space.choose(self._recipe, lambda name, axis, asked=asked: space.suggested(asked, name, axis))  # type: ignore[misc]
            if space.key(point) not in tried:
                self._asked[number] = asked
                return Trial(number, point, "running")
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        return None

    def _sampler(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        config = self._recipe.tune
        seed = int(np.random.SeedSequence([config.seed, number, attempt]).generate_state(1)[0])
        if config.search == "random" or self._record.launched < config.startup_trials or attempt >= TRIES // 4:
            return optuna.samplers.RandomSampler(seed)
        # Points that are being tried count as bad ones, so that trials side by side do not crowd one spot.
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, constant_liar=True)

    def _tried(self) -> set[str]:
        return {space.key(trial.point) for trial in self._record.trials}

    def _rule_out(self, trial: Trial, verdict: Verdict) -> None:
        """Keep an infeasible point. Raises UserError where there seem to be no others."""
        self._study.tell(self._asked.pop(trial.number), state=optuna.trial.TrialState.FAIL)
        self._record.put(verdict.on(trial).ended("infeasible", verdict.reason))
        self._infeasible_in_a_row += 1
        if self._infeasible_in_a_row >= INFEASIBLE_IN_A_ROW:
            raise UserError(_nothing_fits(self._infeasible_in_a_row, trial, verdict))

    def _check_point(self, trial: Trial) -> None:
        """Raise UserError for a trial of an earlier attempt whose point is none of the space."""
        axes = self._recipe.tune.space
        try:
            for name, value in trial.point.items():
                space.distribution(axes[name]).to_internal_repr(space.encoded(axes[name], value))
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
            url = join(trial_folder(self._record.folder, trial.number), TRIAL_NAME)
            raise UserError(f"{url} holds a point that is none of tune.space ({name}); delete that folder") from None

    def _learn(self, trial: Trial) -> None:
        """Tell the study of a trial of an earlier attempt that is over."""
        if not trial.is_over or trial.dice is None or trial.status == "failed":
            return
        axes = self._recipe.tune.space
        state = optuna.trial.TrialState.PRUNED if trial.status == "stopped" else optuna.trial.TrialState.COMPLETE
        self._study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=trial.dice,
                params={name: space.encoded(axes[name], value) for name, value in trial.point.items()},
                distributions={name: space.distribution(axes[name]) for name in trial.point},
                intermediate_values={scored.epoch: scored.dice for scored in trial.history},
            )
        )


def _nothing_fits(count: int, trial: Trial, verdict: Verdict) -> str:
    return (
        f"tune.space: {count} points in a row are infeasible, the last of them {point_label(trial.point)}: "
        f"{verdict.reason}; search smaller values, or give the trials more (cluster.device_bytes)"
    )

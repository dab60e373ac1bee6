"""Which trials end early, and when the whole sweep does: Ray Tune's rules, fed from the sweep's record."""

from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from segtrain.config import Recipe, TuneConfig
from segtrain.runs.trials import ScoredEpoch, Trial
from segtrain.tune.sweep_record import SweepRecord

FAILED = "failed"
"""Key of a report that ends a trial: why another attempt would end in the same way."""
TAKEN = "taken"
"""Key of a report that ends a trial whose folder another process trains by now: which one, in a sentence."""
MOST_RUNGS = 8
"""Rungs of ASHA on a clock of GPU-seconds, where no trial's end is known beforehand."""


@dataclass(frozen=True)
class _Key:
    """What Ray Tune's rules know a trial by: equal before and after a resume, unlike Tune's own ids."""

    trial_id: int


class Stopping(FIFOScheduler):
    """Ray Tune's rule on the clock that the recipe names; every score and decision goes into the record first.

    The rule is not told of trials that failed, whose scores were right, nor of those that were removed before a start.

    Trials of earlier attempts are shown to the rule in the order of their numbers, so that it has their rungs.
    """

    def __init__(self, recipe: Recipe, record: SweepRecord) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tune = recipe.tune
        self._record = record
        self._rule = _rule(recipe)
        for trial in record.trials:
            self._show_again(trial)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._rule.on_trial_add(tune_controller, _Key(trial.config["number"]))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP where the trial has failed for good, or where the rule says so; the record then has the reason."""
        number = trial.config["number"]
        if FAILED in result:
            self._record.put(self._record[number].ended("failed", result[FAILED]))
            return str(TrialScheduler.STOP)
        if TAKEN in result:  # nothing is wrong with it
            self._record.put(self._record[number].ended("stopped", result[TAKEN], resumable=True))
            return str(TrialScheduler.STOP)
        # Tune repeats the last result of a trial that has come to its end.
        if "dice" not in result or result.get("done"):
            return str(TrialScheduler.CONTINUE)
        scored = ScoredEpoch(*(result[name] for name in ("epoch", "dice", "gpu_s", "images_per_s")))
        now = self._record.scored(number, scored)
        decision = str(self._rule.on_trial_result(tune_controller, _Key(number), _shown(now)))
        if now.epochs >= result["epochs"]:
            decision = str(TrialScheduler.CONTINUE)  # it ends by itself, and may close its run in peace
        elif decision == TrialScheduler.STOP:
            now = now.ended("stopped", _reason(self._tune, now))
        self._record.put(now)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        now = self._record[trial.config["number"]]
        if now.history:
            self._rule.on_trial_complete(tune_controller, _Key(now.number), _shown(now))

    def _show_again(self, trial: Trial) -> None:
        if not trial.history:
            return
        key = _Key(trial.number)
        self._rule.on_trial_add(None, key)
        seen = Trial(trial.number, trial.point, "running")
        for scored in trial.history:
            seen = seen.after(scored)
            self._rule.on_trial_result(None, key, _shown(seen))
        if trial.is_over:
            self._rule.on_trial_complete(None, key, _shown(seen))


class Budget(tune.Stopper):
    """Ends the sweep when its hours or GPU-hours are spent, when it is interrupted, or can record nothing any more."""

    def __init__(self, config: TuneConfig, record: SweepRecord) -> None:
        self._config = config
        self._record = record
        self.interrupted = False
        """Set by whoever wants the sweep to end now; no event, because Tune pickles this."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.interrupted or self._record.fault is not None or self.spent() is not None

    def interrupt(self, *_: object) -> None:
        """What a signal calls: Tune then ends its trials and returns."""
        self.interrupted = True

    def spent(self) -> str | None:
        """The budget that is spent, as a phrase; None while there is some left."""
        for name, hours, spent_s in (
            ("max_hours", self._config.max_hours, self._record.seconds),
            ("max_gpu_hours", self._config.max_gpu_hours, self._record.gpu_s),
        ):
            if hours is not None and spent_s >= hours * 3600:
                return f"tune.{name} ({hours:g}) is spent"
        return None


def _rule(recipe: Recipe) -> Any:
    """Tune's rule for the recipe: one that lets go on, where every trial may train to its end."""
    config = recipe.tune
    if config.stop == "asha":
        longest = (
            max(float(recipe.train.epochs), config.grace)
            if config.clock == "epochs"
            else config.grace * config.reduction**MOST_RUNGS
        )
        return AsyncHyperBandScheduler(
            time_attr=config.clock,
            metric="dice",
            mode="max",
            max_t=longest,  # type: ignore[arg-type]
            grace_period=config.grace,  # type: ignore[arg-type]
            reduction_factor=config.reduction,
            stop_last_trials=False,
        )
    if config.stop == "median":
        # Trials are never paused to let others catch up: a pause ends a trial's process.
        return MedianStoppingRule(
            time_attr=config.clock,
            metric="dice",
            mode="max",
            grace_period=config.grace,
            min_time_slice=float("inf"),  # type: ignore[arg-type]
        )
    return FIFOScheduler()


def _shown(trial: Trial) -> dict[str, float]:
    """A trial as the rules see it, with the best dice so far: it is what the trial would leave behind."""
    return {"epochs": trial.epochs, "gpu_s": trial.gpu_s, "dice": trial.dice or 0.0}


def _reason(config: TuneConfig, trial: Trial) -> str:
    at = f"at epoch {trial.epochs}" if config.clock == "epochs" else f"after {trial.gpu_s:.0f} GPU-seconds"
    if config.stop == "asha":
        return f"not among the best 1/{config.reduction:g} {at} (ASHA)"
    return f"below the median {at}"

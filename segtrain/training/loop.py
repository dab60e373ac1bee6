"""The loop: train an epoch, score it, keep the best, save, go on."""

import math
from collections.abc import Callable
from typing import Any

from segtrain.config import PlateauSchedule, Recipe
from segtrain.data.batches import StepBatch
from segtrain.errors import UserError
from segtrain.training import reading
from segtrain.training.best import PanelArtist, keep_best
from segtrain.training.evaluation import evaluate
from segtrain.training.run import Run
from segtrain.training.status import Progress, RunSummary
from segtrain.training.step import StepResult
from segtrain.training.strategy import place
from segtrain.training.watch import Watch
from segtrain.training.world import World


def _ignore(progress: Progress) -> None:
    """The watcher of a run that nobody watches."""


def train(recipe: Recipe, world: World, *, on_progress: Callable[[Progress], None] = _ignore) -> RunSummary:
    """Train until the recipe's last epoch or until early stopping, from the newest checkpoint on where there is one.

    Every worker of a run calls this; all return the same scores. Raises UserError for a recipe that does not fit
    the data, the devices or the run's folder, and where the loss is no longer finite.
    """
    on_progress(Progress("starting", epochs=recipe.train.epochs))
    with Run(recipe, world) as run:
        watch = Watch(recipe, run.cursor, run.training_data.steps_per_epoch, on_progress)
        while not run.cursor.is_finished(recipe.train):
            measured: dict[str, Any] = train_epoch(run, watch)
            artist = PanelArtist(run)
            if (run.cursor.epoch + 1) % recipe.evaluation.every_epochs == 0 or _is_last_epoch(run):
                with watch.evaluating():
                    measured |= evaluate_epoch(run, artist)
                watch.tell("evaluating", dice=measured["dice_hard_original"])
            measured |= reading.measured(run)
            if run.record is not None:
                run.record.epoch(run.cursor.step, {"epoch": run.cursor.epoch + 1, **measured}, artist.panels)
            run.cursor.start_epoch(run.cursor.epoch + 1)
            run.save()
            watch.saved(measured.get("dice_hard_original"))
        summary = _summarize(run, watch.images_per_s)
    on_progress(Progress("done", epoch=summary.epoch, epochs=recipe.train.epochs, dice=summary.dice_hard_original))
    return summary


def train_epoch(run: Run, watch: Watch) -> dict[str, float]:
    """Train what is left of the epoch at the cursor. Returns its measurements."""
    cursor, steps = run.cursor, run.training_data.steps_per_epoch
    unread: tuple[StepBatch, StepResult, float] | None = None
    watch.start_epoch()
    while cursor.step_in_epoch < steps:
        with watch.waiting():
            batch = next(run.batches)
        rate = run.set_learning_rate()
        result = run.step(place(run.strategy, batch.replicas), cursor.step)
        # Read the step before while this one runs: a GPU then never waits for the host.
        if unread is not None:
            _settle(run, watch, *unread)
        unread = (batch, result, rate)
        cursor.step += 1
        cursor.step_in_epoch += 1
        if cursor.step_in_epoch < steps and watch.checkpoint_is_due():
            _settle(run, watch, *unread)
            unread = None
            run.save()
    if unread is not None:
        _settle(run, watch, *unread)
    return watch.finish_epoch() | {"left_out": run.training_data.samples_per_epoch - int(cursor.samples)}


def _settle(run: Run, watch: Watch, batch: StepBatch, result: StepResult, rate: float) -> None:
    """Read a step's result and add it to the epoch's sums. Raises UserError where the loss is not finite."""
    loss, dice, samples = float(result.loss), float(result.dice), float(result.samples)
    number = batch.epoch * run.training_data.steps_per_epoch + batch.step + 1
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {number} (epoch {batch.epoch + 1}) on the pictures {', '.join(batch.ids)}; "
            f"lower optimizer.learning_rate or set train.clip_norm"
        )
    run.cursor.add(loss * run.recipe.train.global_batch_size, dice, samples)
    reading.check_left_out(run.recipe, run.training_data, batch.step, run.cursor.samples)
    if run.record is not None:
        skipped = {} if bool(result.applied) else {"skipped": "overflow"}
        run.record.step(step=number, loss=loss, dice=dice / max(samples, 1.0), learning_rate=rate, **skipped)
    watch.settled(samples)


def evaluate_epoch(run: Run, artist: PanelArtist) -> dict[str, float]:
    """Score the validation fold; keep the model where it is the best so far. Returns the scores."""
    with run.averaged_weights():
        scores = evaluate(
            run.forward, run.strategy, run.validation_data, threshold=run.recipe.evaluation.threshold, watch=artist
        )
        reading.check_scored(run.recipe, run.validation_data, len(scores.ids))
        metrics = scores.summary()
        if not math.isfinite(metrics["dice_soft"]):
            raise UserError(
                f"the weights are no longer finite after step {run.cursor.step}; "
                f"lower optimizer.learning_rate or set train.clip_norm"
            )
        if _is_better(run, metrics["dice_hard_original"]):
            run.cursor.best_metrics = metrics
            if run.world.is_chief:
                keep_best(run, metrics, scores, artist.panels)
    return metrics


def _is_better(run: Run, dice: float) -> bool:
    """Count this evaluation for best-so-far, early stopping and the plateau schedule."""
    cursor, schedule = run.cursor, run.recipe.schedule
    if dice > cursor.best_dice:
        cursor.best_dice, cursor.best_epoch, cursor.best_step = dice, cursor.epoch + 1, cursor.step
        cursor.epochs_without_better = cursor.epochs_on_plateau = 0
        return True
    cursor.epochs_without_better += 1
    cursor.epochs_on_plateau += run.recipe.evaluation.every_epochs
    if isinstance(schedule, PlateauSchedule) and cursor.epochs_on_plateau >= schedule.patience_epochs:
        cursor.plateau_fraction = max(cursor.plateau_fraction * schedule.factor, schedule.min_fraction)
        cursor.epochs_on_plateau = 0
    return False


def _is_last_epoch(run: Run) -> bool:
    return run.cursor.epoch + 1 == run.recipe.train.epochs


def _summarize(run: Run, images_per_s: float) -> RunSummary:
    cursor, best = run.cursor, run.cursor.best_metrics
    return RunSummary(
        folder=run.folder,
        epoch=cursor.best_epoch,
        dice_hard_original=best["dice_hard_original"],
        dice_soft=best["dice_soft"],
        iou_hard_original=best["iou_hard_original"],
        train_seconds=cursor.train_s,
        images_per_s=images_per_s,
        stopped_early=cursor.epoch < run.recipe.train.epochs,
    )

"""The loop: train an epoch, score it, keep the best, save, go on."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from segtrain.config import PlateauSchedule, Recipe
from segtrain.errors import DataError, UserError
from segtrain.runs.best_files import why_unusable
from segtrain.runs.run_folder import BEST_NAME
from segtrain.runs.status import NOBODY, Driver, Left, Progress, RunSummary, World
from segtrain.score_table import Scores
from segtrain.training.best import PanelArtist, keep_best
from segtrain.training.clock import Watch
from segtrain.training.evaluation import VALIDATION_SCORES, score_fold
from segtrain.training.run import Run, Started
from segtrain.training.step import Wishes, read_results

log = logging.getLogger(__name__)
SHOWN_SENTENCES = 3
"""Of the damaged pictures, in an error's message."""


@dataclass
class Agreed:
    """What all workers have learnt from the sums that they have read."""

    leave: bool = False
    """A worker wants to save and leave."""
    save: bool = False
    """By the chief's clock a checkpoint is due."""

    def __or__(self, other: "Agreed") -> "Agreed":
        return Agreed(self.leave or other.leave, self.save or other.save)


class Leaving(Exception):  # noqa: N818 - nothing went wrong
    """All workers have agreed to save and leave at the cursor."""


def train(recipe: Recipe, world: World, driver: Driver = NOBODY) -> RunSummary:
    """Train until the recipe's last epoch or until early stopping, from the newest checkpoint on where there is one.

    Every worker of a run calls this; all return the same scores.

    Raises:
        Left: the driver wanted one of the workers to leave. All have agreed on a step and saved there.
        UserError: the recipe does not fit the data, the devices or the run's folder, or the loss is no longer finite.
    """
    began_at = time.perf_counter()
    driver.tell(Progress("starting", epochs=recipe.train.epochs))
    with Run(recipe, world, driver.claim, driver.note) as run:
        watch = Watch(
            recipe,
            run.state.cursor,
            run.training_data.steps_per_epoch,
            driver,
            began_at=began_at,
            saved_step=lambda: run.state.checkpoints.saved_step,
        )
        try:
            _train_epochs(run, watch, driver)
        except Leaving:
            with watch.saving():
                run.save()
                run.state.checkpoints.wait()
            watch.tell("leaving")
            raise Left(run.state.cursor.step) from None
        _mend_best(run, watch, driver)
        summary = _summarize(run, watch.images_per_s)
        with watch.saving():
            run.state.checkpoints.wait()
        account = watch.account()
    driver.tell(Progress("done", summary.epoch, recipe.train.epochs, dice=summary.dice_hard_original, account=account))
    return summary


def _train_epochs(run: Run, watch: Watch, driver: Driver) -> None:
    cursor, epochs = run.state.cursor, run.recipe.train.epochs
    while not cursor.is_finished(run.recipe.train):
        measured: dict[str, Any] = train_epoch(run, watch, driver)
        number = cursor.epoch + 1
        artist = PanelArtist(run)
        if number % run.recipe.evaluation.every_epochs == 0 or number == epochs:
            with watch.evaluating():
                measured |= evaluate_epoch(run, artist, driver)
            watch.tell("evaluating", dice=measured["dice_hard_original"])
        measured |= run.newly_read()
        run.check_owner()
        if run.record is not None:
            run.record.epoch(cursor.step, {"epoch": number, **measured}, artist.panels)
        cursor.start_epoch(number)
        with watch.saving():
            run.save()
        watch.saved(measured.get("dice_hard_original"))


def train_epoch(run: Run, watch: Watch, driver: Driver = NOBODY) -> dict[str, float]:
    """Train what is left of the epoch at the cursor. Returns its measurements.

    A worker that is asked to leave, or whose clock calls for a checkpoint, adds that to the sums of its next step. All
    workers read it after the same step, and leave or save there.
    """
    cursor, steps = run.state.cursor, run.training_data.steps_per_epoch
    agreed = Agreed()
    watch.start_epoch()
    while cursor.step_in_epoch < steps:
        with watch.waiting():
            batch = next(run.batches)
        rate = run.learning_rate()
        wishes = Wishes(driver.wants_to_leave(), run.world.is_chief and watch.checkpoint_is_due(), watch.step_s)
        result = run.step(batch.replicas, cursor.step, rate, wishes, whole=batch.is_whole)
        run.unread.add(Started(batch.epoch, batch.step, batch.ids, rate, result))
        cursor.step += 1
        cursor.step_in_epoch += 1
        watch.started()
        agreed |= _settle(run, watch, run.unread.due())
        if agreed.leave:
            break
        if cursor.step_in_epoch < steps and (agreed.save or watch.checkpoint_follows()):
            agreed |= _settle(run, watch, run.unread.rest())
            agreed.save = False
            with watch.saving():
                run.save()
    agreed |= _settle(run, watch, run.unread.rest())
    if agreed.leave:
        raise Leaving
    return watch.finish_epoch() | {"left_out": run.training_data.samples_per_epoch - int(cursor.samples)}


def _settle(run: Run, watch: Watch, started: Sequence[Started]) -> Agreed:
    """Read the results of steps and add them to the epoch's sums. Returns what all workers know now.

    Raises UserError where a loss is not finite.
    """
    agreed = Agreed()
    if not started:
        return agreed
    results = read_results([step.result for step in started])
    data, batch_size = run.training_data, run.recipe.train.global_batch_size
    for step, result in zip(started, results, strict=True):
        number = step.epoch * data.steps_per_epoch + step.step + 1
        if not math.isfinite(result.loss):
            raise UserError(
                f"the loss is {result.loss} at step {number} (epoch {step.epoch + 1}) on the pictures "
                f"{', '.join(step.ids)}; lower optimizer.learning_rate or set train.clip_norm"
            )
        run.state.cursor.add(result.loss * batch_size, result.dice, result.samples)
        left_out = min((step.step + 1) * batch_size, data.samples_per_epoch) - int(run.state.cursor.samples)
        _check_left_out(run, "training", left_out, data.samples_per_epoch, data.reader.quarantined)
        if run.record is not None:
            skipped = {} if result.applied else {"skipped": "overflow"}
            dice = result.dice / max(result.samples, 1.0)
            run.record.step(step=number, loss=result.loss, dice=dice, learning_rate=step.rate, **skipped)
        watch.settled(result.samples)
        agreed |= Agreed(result.leave > 0.0, result.save > 0.0)
    watch.read(len(results))
    run.unread.learn(results[-1].step_s)
    return agreed


def evaluate_epoch(run: Run, artist: PanelArtist, driver: Driver = NOBODY) -> dict[str, float]:
    """Score the validation fold; keep the model where it is the best so far. Returns the scores."""

    def after_batch() -> None:
        driver.beat()
        if run.any_worker(driver.wants_to_leave()):
            raise Leaving

    run.state.average_statistics()
    with run.state.averaged_weights():
        scores = _scores(run, artist, after_batch)
        metrics = scores.summary(VALIDATION_SCORES)
        if not math.isfinite(metrics["dice_soft"]):
            raise UserError(
                f"the weights are no longer finite after step {run.state.cursor.step}; "
                f"lower optimizer.learning_rate or set train.clip_norm"
            )
        if _is_better(run, metrics["dice_hard_original"]):
            run.state.cursor.best_metrics = metrics
            if run.world.is_chief:
                keep_best(run, metrics, scores, artist.panels)
    return metrics


def _mend_best(run: Run, watch: Watch, driver: Driver) -> None:
    """Make `best/` again from the checkpoint of the best epoch, where it is missing, damaged, or of another epoch.

    It is of another epoch after a kill between the writing of its two files, or after a late write of an older chief.
    Raises DataError where that checkpoint is damaged too.
    """
    state, reason = run.state, None
    step, end = state.cursor.best_step, state.cursor
    if run.world.is_chief and run.kept_step != step:
        reason = why_unusable(run.folder.url, run.storage, step)
    if not run.any_worker(reason is not None):
        return
    if reason is not None:
        log.warning("%s; it is made again from the checkpoint of step %d", reason, step)
    state.checkpoints.wait()
    try:
        state.load(state.checkpoints.restore_step(step))
    except DataError as error:
        raise DataError(
            f"{reason or f'{BEST_NAME}/ is not whole'}, and cannot be made again: {error}; "
            f"put back a copy of it, or give the run another name (run.name=...)"
        ) from None
    artist = PanelArtist(run)
    with watch.evaluating(), state.averaged_weights():
        scores = _scores(run, artist, driver.beat)
        if run.world.is_chief:
            keep_best(run, scores.summary(VALIDATION_SCORES), scores, artist.panels)
    state.cursor = end


def _scores(run: Run, artist: PanelArtist, after_batch: Callable[[], None]) -> Scores:
    """Of the validation fold, by the weights that the model holds."""
    data, threshold = run.validation_data, run.recipe.evaluation.threshold
    scores = score_fold(run.forward, run.strategy, data, threshold=threshold, watch=artist, after_batch=after_batch)
    _check_left_out(run, "validation", len(data.ids) - len(scores.ids), len(data.ids), data.reader.quarantined)
    return scores


def _check_left_out(run: Run, purpose: str, left_out: int, pictures: int, quarantined: list[str]) -> None:
    """Raise DataError where more of the `pictures` are left out as damaged than may be.

    All workers call this with the same numbers, so all of them raise at the same moment. `quarantined` has a sentence
    for each picture that this worker itself has left out.
    """
    # A tenth: what is left of a small set must still be that set.
    allowed = min(run.recipe.data.max_quarantined, pictures // 10)
    if left_out > allowed:
        own = "; ".join(quarantined[:SHOWN_SENTENCES]) or "another worker's log names them"
        raise DataError(
            f"{left_out} of {pictures} {purpose} pictures are damaged and at most {allowed} may be left out "
            f"(data.max_quarantined): {own}. Run jobs/data.py verify, and make the data set again with jobs/prepare.py"
        )


def _is_better(run: Run, dice: float) -> bool:
    """Count this evaluation for best-so-far, early stopping and the plateau schedule."""
    cursor, schedule = run.state.cursor, run.recipe.schedule
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


def _summarize(run: Run, images_per_s: float) -> RunSummary:
    cursor = run.state.cursor
    return RunSummary(
        folder=run.folder.url,
        epoch=cursor.best_epoch,
        dice_hard_original=cursor.best_metrics["dice_hard_original"],
        dice_soft=cursor.best_metrics["dice_soft"],
        iou_hard_original=cursor.best_metrics["iou_hard_original"],
        train_seconds=cursor.train_s,
        images_per_s=images_per_s,
        stopped_early=cursor.epoch < run.recipe.train.epochs,
    )

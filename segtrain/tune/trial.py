"""What runs in a trial's own process: the training itself with one worker, or the driver of a run with several."""

import gc
import os
import sys
from functools import partial
from typing import Any

from ray import tune

from segtrain.cluster import nodes
from segtrain.cluster.failures import DeviceMemoryError, WorkerError, comes_again, portable
from segtrain.cluster.log_forwarding import forward_warnings
from segtrain.cluster.watchdog import Stuck, Watchdog
from segtrain.config import Recipe, recorded
from segtrain.errors import TakenOverError
from segtrain.launch.preflight import prepared
from segtrain.launch.train_run import run_on
from segtrain.launch.train_worker import STUCK_EXIT_CODE, Train
from segtrain.memory.smaller_batch import with_smaller_batch
from segtrain.process import before_tensorflow
from segtrain.runs.run_folder import RunFolder
from segtrain.runs.run_record import lines_of
from segtrain.runs.status import Driver, Progress, RunSummary, World
from segtrain.storage.files import Storage
from segtrain.storage.scratch import temporary_files_in_scratch
from segtrain.training.checkpoint import Checkpoints
from segtrain.tune.placement_groups import TrialGroups
from segtrain.tune.stopping import FAILED, TAKEN


def run_trial(config: dict[str, Any], train: Train, groups: TrialGroups | None) -> None:
    """Train as `config["recipe"]` says, from the run's newest checkpoint on, and report every scored epoch to Tune.

    Ray Tune calls this. `groups` is given where the run has several workers, and answers for their placement groups.
    `config["claim"]` is the token of the sweep's claim on the trial's folder. That another process has the folder is
    reported as the trial's end, and so is an error that would come again; any other is raised, and Tune starts the
    trial again as often as `tune.max_failures` says.
    """
    recipe = recorded(config["recipe"])
    reporter = Reporter(recipe)
    try:
        for epoch in untold_epochs(recipe, Storage(recipe.storage), config["known_epochs"]):
            reporter.report(*epoch)
        if groups is None:
            summary = _train_here(recipe, reporter, train, config["claim"])
        else:
            # The loop is in workers of their own, which Ray Train starts; this process waits for them.
            summary, _ = run_on(
                reporter,
                prepared(recipe),
                train,
                on_group=partial(groups.put, config["number"]),
                claim=config["claim"],
            )
    except Exception as error:
        told = portable(error, gpus=recipe.cluster.gpus_per_worker > 0)
        if not comes_again(told):
            raise told from None
        # Of a mistake the sentence says all; of a bug whoever mends it needs the traceback.
        notes = [told.trace] if isinstance(told, WorkerError) else []
        tune.report({TAKEN if isinstance(told, TakenOverError) else FAILED: str(told), "notes": notes})
        return
    if summary.epoch > max(config["known_epochs"], reporter.epochs):
        # The run had come to its end, but was killed before its last epochs were told.
        reporter.report(summary.epoch, summary.dice_hard_original, summary.train_seconds, summary.images_per_s)


def untold_epochs(recipe: Recipe, storage: Storage, known_epochs: int) -> list[tuple[int, float, float, float]]:
    """Epoch, dice, seconds and images/s of the epochs that a trial's checkpoints hold and its sweep has not heard of.

    They ended just before the driver or the trial's process was killed, or another driver took the sweep over. Seconds
    are of all attempts; those up to an epoch that is not the last are its share. Raises DataError where no checkpoint
    can be read.
    """
    lines = storage.read_if_there(RunFolder(recipe.run.folder).metrics_log)
    if lines is None:
        return []
    done = Checkpoints(recipe.run.folder, storage, keep=recipe.checkpoint.keep).cursor()
    return [
        (line["epoch"], line["dice_hard_original"], done.train_s * line["epoch"] / done.epoch, line["images_per_s"])
        for line in lines_of("epoch", lines)
        if known_epochs < line["epoch"] <= done.epoch and "dice_hard_original" in line
    ]


class Reporter:
    """A display (`segtrain.launch.progress.Display`) that passes each scored epoch on to Ray Tune."""

    def __init__(self, recipe: Recipe) -> None:
        self.epochs = 0
        """Epochs reported in this attempt."""
        self._recipe = recipe
        self._notes: list[str] = []

    def show(self, progress: Progress) -> None:
        """Report an epoch that is saved and scored; waits until Tune has decided. Ends the thread where it stops."""
        if progress.phase == "saved" and progress.score is not None:
            self.report(progress.epoch, progress.score, progress.train_s, progress.images_per_s)

    def report(self, epoch: int, dice: float, train_s: float, images_per_s: float) -> None:
        """`train_s` in seconds, of all attempts."""
        notes, self._notes = self._notes, []
        self.epochs = epoch
        tune.report(
            {
                "epoch": epoch,
                "epochs": self._recipe.train.epochs,
                "dice": dice,
                "gpu_s": train_s * self._recipe.cluster.max_workers * self._recipe.cluster.replicas_per_worker,
                "images_per_s": images_per_s,
                "notes": notes,
            }
        )

    def note(self, text: str) -> None:
        """Keep a line for the next report."""
        self._notes.append(text)


def _end(stuck: Stuck) -> None:
    """Tune starts a trial whose process is gone again."""
    try:
        print(f"stuck for {stuck.seconds:.0f} s at {stuck.where}\n{stuck.stacks}", file=sys.stderr, flush=True)
    finally:
        os._exit(STUCK_EXIT_CODE)


def _train_here(recipe: Recipe, reporter: Reporter, train: Train, claim: str) -> RunSummary:
    """The loop in this process; with half the pictures at once each time that the device runs out of memory."""
    before_tensorflow(compute_threads=recipe.cluster.compute_threads)
    world = World(
        replicas_per_worker=recipe.cluster.replicas_per_worker,
        gpus_per_worker=recipe.cluster.gpus_per_worker,
        workers_on_machine=nodes.room_here(recipe.cluster),
    )
    forward_warnings(reporter.note)
    while True:
        try:
            watching = Watchdog(recipe.cluster.stuck_after_s, _end, first_s=recipe.cluster.first_step_s)
            with temporary_files_in_scratch("trial"), watching as watchdog:
                return train(recipe, world, Driver(reporter.show, beat=watchdog.beat, claim=claim, note=reporter.note))
        except Exception as error:
            shortage = portable(error, gpus=world.gpus_per_worker > 0)
            if not isinstance(shortage, DeviceMemoryError):
                raise
        # Outside of the handler: its exception holds the tensors of the step that did not fit.
        recipe, change = with_smaller_batch(recipe, shortage.headline, scoring=shortage.scoring)
        reporter.note(change)
        gc.collect()

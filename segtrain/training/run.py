"""One worker's part in a run: its data, its devices, its step, the folder that it writes, and the state it trains."""

import dataclasses
import logging
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
import tensorflow as tf

from segtrain.config import Recipe
from segtrain.config.batch_split import PLACED_BATCHES, batch_split
from segtrain.dataset.data_set import read_data_set
from segtrain.dataset.reader import ReadCounts
from segtrain.errors import TakenOverError
from segtrain.models import build_model
from segtrain.pipeline.prefetch import Prefetch
from segtrain.pipeline.sample_order import sample_order
from segtrain.pipeline.worker_data import EvaluationData, TrainingData
from segtrain.runs.ownership import RunClaim, take_run, write_while
from segtrain.runs.run_folder import RunFolder
from segtrain.runs.status import NOBODY, World
from segtrain.storage.files import Storage, join
from segtrain.training.evaluation import compiled_forward
from segtrain.training.gpu_facts import name_gpus
from segtrain.training.metrics_log import Record
from segtrain.training.optimizers import build_optimizer, learning_rate
from segtrain.training.state import TrainingState
from segtrain.training.step import TrainStep
from segtrain.training.strategy import build_strategy, configure_process, sum_over_workers, summing_over_workers
from segtrain.training.unread import Unread

log = logging.getLogger(__name__)


class Started(NamedTuple):
    """A step that has been started."""

    epoch: int
    step: int
    """Within the epoch."""
    ids: list[str]
    """Of the pictures of this worker."""
    rate: float
    result: tf.Tensor
    """For `read_results`."""


class Run:
    """Built once per worker process and attempt; a context manager that lets go of threads and files."""

    def __init__(
        self, recipe: Recipe, world: World, driver: str | None = None, note: Callable[[str], None] = NOBODY.note
    ) -> None:
        """Make ready to train.

        `driver` is the token of the driver's claim on the run's folder; None where there is no driver. The chief calls
        `note` with a line on its GPUs.
        """
        train = recipe.train
        configure_process(world, deterministic=train.deterministic, seed=train.seed, tf32=train.tf32)
        gpus = name_gpus(world)  # before the first kernel, which may take long
        if gpus is not None and world.is_chief:
            note(gpus)
        self.world = world
        self.folder = RunFolder(recipe.run.folder)
        self.storage = Storage(recipe.storage)
        data_set = read_data_set(self.storage, recipe.data)
        order = sample_order(recipe, data_set.manifest)
        recipe = self.recipe = order.written_into(recipe)
        self.strategy = build_strategy(world)
        self._wishes = summing_over_workers(self.strategy)
        split = batch_split(
            recipe.train.global_batch_size,
            order.lanes,
            world.workers,
            world.replicas_per_worker,
            recipe.train.per_replica_batch_size,
        )
        self.step = self._build_step(split.accumulation)
        self.forward = compiled_forward(self.strategy, self.step.model)
        self.training_data = TrainingData(recipe, data_set, self.storage, world, split)
        self.validation_data = EvaluationData(
            recipe, data_set, self.storage, world, taken_bytes=self.training_data.kept_bytes
        )
        self._counted = ReadCounts()
        self.check_owner: Callable[[], None] = self._claimed(driver).check if world.is_chief else lambda: None
        """Raises TakenOverError where another process has the folder by now. Call it before each write there: a chief
        that was cut off may go on for a minute beside the one that replaced it."""
        self.state = TrainingState(self.step, world, self.storage, data_set.manifest.fingerprint, self.check_owner)
        self.state.restore()
        self.kept_step = 0
        """Steps of the epoch whose `best/` this process has written; 0 for none."""
        self.record: Record | None = None
        self.unread: Unread[Started] = Unread()
        if world.is_chief:
            write_while(self.check_owner, self.folder.recipe, recipe.to_yaml().encode(), self.storage)
            self.record = Record(
                self.folder.url, self.storage, resumed_step=self.state.cursor.step, owned=self.check_owner
            )
        # One iterator for the whole run: it reads ahead into the next epoch while this one is scored. It starts
        # threads, so it comes last: what fails before it leaves nothing behind.
        read = self.training_data.batches(self.state.cursor.epoch, self.state.cursor.step_in_epoch)
        placed = (dataclasses.replace(batch, replicas=self.step.place(batch.replicas)) for batch in read)
        self.batches = Prefetch(placed, PLACED_BATCHES - 1, "segtrain-placing")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.training_data.close()
        self.batches.close()
        self.validation_data.close()
        try:
            # Also after an error: the next attempt may follow in this process, and goes on from what is being saved.
            self.state.checkpoints.wait()
            if self.record is not None:
                self.record.close()
        except Exception as fault:
            if kind is None:
                raise
            if isinstance(error, TakenOverError) and isinstance(fault, TakenOverError):
                return
            log.exception("%s could not be closed", self.folder.url)

    def _build_step(self, accumulation: int) -> TrainStep:
        train = self.recipe.train
        with self.strategy.scope():
            model = build_model(
                self.recipe.model,
                dtype_policy=train.precision,
                seed=train.seed,
                rematerialize=bool(train.rematerialize),
            )
            return TrainStep(
                self.strategy,
                model,
                build_optimizer(self.recipe.optimizer),
                self.recipe,
                accumulation=accumulation,
            )

    def any_worker(self, wish: bool) -> bool:
        """Whether any worker calls this with True: a collective, which all of them must call."""
        return bool(self._wishes(np.array([float(wish)]))[0])

    def _claimed(self, driver: str | None) -> RunClaim:
        """Claim the run's folder for this chief, and remove what killed processes left there.

        This comes before the chief looks for a checkpoint, because from here on an older chief saves none.
        """
        folder = self.folder
        claim = RunClaim(folder.url, self.storage, driver or take_run(folder.url, self.storage))
        claim.begin_chief()
        checkpoints = [join(folder.checkpoints, name) for name in self.storage.list(folder.checkpoints)]
        for written in (folder.url, folder.best, folder.panels, folder.stuck, *checkpoints):
            self.storage.remove_leftovers(written)
        return claim

    def newly_read(self) -> dict[str, int]:
        """What all workers have read since the last call, for training and for evaluation.

        A collective, which all workers must call.
        """
        both = self.training_data.reader.counts() + self.validation_data.reader.counts()
        now = dataclasses.replace(both, retries=self.storage.retries)  # both count those of this one storage
        own = (now - self._counted).as_array()
        self._counted = now
        total = ReadCounts.from_array(sum_over_workers(self.strategy, own))
        names = ("downloads", "downloaded_bytes", "downloaded_again", "retries", "cache_hits")
        return {name: getattr(total, name) for name in names}

    def learning_rate(self) -> float:
        """Of the step to come."""
        return learning_rate(
            self.recipe.schedule,
            self.recipe.optimizer.learning_rate,
            self.state.cursor.step,
            self.training_data.steps_per_epoch,
            self.recipe.train.epochs,
            self.state.cursor.plateau_fraction,
        )

    def save(self) -> None:
        """Start saving a checkpoint at the cursor, in the background. All workers call this; the chief writes."""
        self.state.average_statistics()
        self.check_owner()
        if self.record is not None:
            # Before the checkpoint: a run that goes on from it writes only the lines beyond it.
            self.record.flush()
            self.state.save()

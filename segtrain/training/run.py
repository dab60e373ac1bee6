"""Everything one worker of a run holds: data, replicas, network, optimizer, cursor, checkpoints, record."""

import dataclasses
import hashlib
import logging
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from segtrain.config import Recipe
from segtrain.config.batch_split import batch_split
from segtrain.dataset.manifest import Manifest, read_manifest
from segtrain.dataset.reader import ReadCounts
from segtrain.errors import DataError, TakenOverError, UserError
from segtrain.models.build import build_model
from segtrain.pipeline.worker_data import EvaluationData, TrainingData
from segtrain.runs.ownership import RunClaim, take_run, write_while
from segtrain.runs.run_folder import MODEL_NAME, RunFolder
from segtrain.runs.status import World
from segtrain.storage.files import Storage, join
from segtrain.storage.scratch import scratch_folder
from segtrain.training.checkpoint import Checkpoint, Checkpoints, Cursor, check_same_run, facts_of
from segtrain.training.evaluation import compiled_forward, sum_over_workers, summing_over_workers
from segtrain.training.metrics_log import Record
from segtrain.training.optimizers import build_optimizer, learning_rate
from segtrain.training.step import TrainStep
from segtrain.training.strategy import build_strategy, configure_process, local_value

log = logging.getLogger(__name__)
DAMAGED_MODEL = (
    *(ValueError, TypeError, KeyError, AttributeError, IndexError, ImportError, NotImplementedError),
    *(OSError, EOFError, RecursionError, zipfile.BadZipFile, zlib.error),
)
"""What Keras raises for a file that is no model or damaged, depending on which part of it is read first."""


class Run:
    """Built once per worker process and attempt; a context manager that lets go of threads and files."""

    def __init__(self, recipe: Recipe, world: World, driver: str | None = None) -> None:
        """`driver` is the token of the driver's claim on the run's folder; None where there is no driver."""
        configure_process(world, deterministic=recipe.train.deterministic, seed=recipe.train.seed)
        self.recipe = recipe
        self.world = world
        self.folder = recipe.run.folder
        self.storage = Storage(recipe.storage)
        self.manifest = _read_data_set(recipe, self.storage)
        self.strategy = build_strategy(world)
        self._build_network()
        self._build_data()
        self.facts = facts_of(recipe, self.manifest.fingerprint)
        self._claim = self._claimed(driver) if world.is_chief else None
        self.checkpoints = Checkpoints(
            self.folder, self.storage, keep=recipe.checkpoint.keep, check_owner=self.check_owner
        )
        self.cursor = Cursor()
        self.kept_step = 0
        """Steps of the epoch whose `best/` this process has written; 0 for none."""
        self._restore()
        self._counted = ReadCounts()
        self.record: Record | None = None
        if world.is_chief:
            text = recipe.to_yaml().encode()
            write_while(self.check_owner, RunFolder(self.folder).recipe, text, self.storage)
            self.record = Record(self.folder, self.storage, resumed_step=self.cursor.step, owned=self.check_owner)
        # One iterator for the whole run: it reads ahead into the next epoch while this one is scored. It starts
        # threads, so it comes last: what fails before it leaves nothing behind.
        self.batches = self.training_data.batches(self.cursor.epoch, self.cursor.step_in_epoch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.training_data.close()
        self.validation_data.close()
        try:
            # Also after an error: the next attempt may follow in this process, and goes on from what is being saved.
            self.checkpoints.wait()
            if self.record is not None:
                self.record.close()
        except Exception as fault:
            if kind is None:
                raise
            if isinstance(error, TakenOverError) and isinstance(fault, TakenOverError):
                return
            log.exception("%s could not be closed", self.folder)

    def _build_network(self) -> None:
        train = self.recipe.train
        split = self._split = batch_split(
            train.global_batch_size,
            self.recipe.data.lanes,
            self.world.workers,
            self.world.replicas_per_worker,
            train.per_replica_batch_size,
        )
        with self.strategy.scope():
            self.model = build_model(
                self.recipe.model,
                dtype_policy=train.precision,
                seed=train.seed,
                rematerialize=bool(train.rematerialize),
            )
            self.optimizer = build_optimizer(self.recipe.optimizer)
            self.step = TrainStep(
                self.strategy, self.model, self.optimizer, self.recipe, accumulation=split.accumulation
            )
        self.forward = compiled_forward(self.strategy, self.model)
        self._wishes = summing_over_workers(self.strategy)

    def any_worker(self, wish: bool) -> bool:
        """Whether any worker calls this with True: a collective, which all of them must call."""
        return bool(self._wishes(np.array([float(wish)]))[0])

    def _build_data(self) -> None:
        shared = {"worker": self.world.rank, "workers": self.world.workers, "replicas": self.world.replicas_per_worker}
        self.training_data = TrainingData(self.recipe, self.manifest, self.storage, split=self._split, **shared)
        self.validation_data = EvaluationData(
            self.recipe, self.manifest, self.storage, folds=(self.recipe.data.fold,), **shared
        )
        if not self.validation_data.ids:
            raise UserError(f"data.fold: fold {self.recipe.data.fold} has no labelled picture to validate on")

    def _claimed(self, driver: str | None) -> RunClaim:
        """The folder is this chief's from here on, before it looks at a checkpoint: an older chief saves no more."""
        claim = RunClaim(self.folder, self.storage, driver or take_run(self.folder, self.storage))
        claim.begin_chief()
        mine = RunFolder(self.folder)
        written = [self.folder, mine.best, mine.panels, mine.stuck]
        checkpoints = mine.checkpoints
        for folder in [*written, *(join(checkpoints, name) for name in self.storage.list(checkpoints))]:
            self.storage.remove_leftovers(folder)
        return claim

    def check_owner(self) -> None:
        """Raise TakenOverError where another process has the folder by now. To be called before each write there.

        A chief that was cut off may go on for a minute beside the one in its place.
        """
        if self._claim is not None:
            self._claim.check()

    def newly_read(self) -> ReadCounts:
        """What this worker has read since the last call, for training and for evaluation."""
        both = self.training_data.counts() + self.validation_data.counts()
        now = dataclasses.replace(both, retries=self.storage.retries)  # both count those of this one storage
        before, self._counted = self._counted, now
        return now - before

    def set_learning_rate(self) -> float:
        """Give the optimizer the rate of the step to come, and return it."""
        rate = learning_rate(
            self.recipe.schedule,
            self.recipe.optimizer.learning_rate,
            self.cursor.step,
            self.training_data.steps_per_epoch,
            self.recipe.train.epochs,
            self.cursor.plateau_fraction,
        )
        self.optimizer.learning_rate = rate
        return rate

    def _state(self) -> dict[str, Any]:
        """Every variable that a later step depends on, by a name that does not depend on the process."""
        groups = {
            "model": [variable.value for variable in self.model.variables],
            "optimizer": [variable.value for variable in self.optimizer.variables],
            "ema": self.step.ema,
            "loss_scale": self.step.loss_scale.variables,
        }
        return {f"{name}/{index:04d}": v for name, group in groups.items() for index, v in enumerate(group)}

    def snapshot(self) -> dict[str, np.ndarray]:
        """Copies of all state variables, as this worker's first replica holds them."""
        return {name: local_value(self.strategy, value).numpy() for name, value in self._state().items()}

    def save(self) -> None:
        """Start saving a checkpoint at the cursor, in the background. Only the chief does anything."""
        self.check_owner()
        if self.record is not None:
            # Before the checkpoint: a run that goes on from it writes only the lines beyond it.
            self.record.flush()
            self.checkpoints.save(self.snapshot(), self.cursor, self.facts, self.recipe)

    def _restore(self) -> None:
        """Go to the newest whole checkpoint, or start from other weights where the recipe says so.

        The chief chooses the checkpoint, so that all workers take the same one.
        """
        checkpoint = self.checkpoints.restore() if self.world.is_chief else None
        chosen = -1 if checkpoint is None else checkpoint.cursor.step
        chosen = int(sum_over_workers(self.strategy, np.array([float(chosen if self.world.is_chief else 0)]))[0])
        if chosen < 0:
            if self.recipe.train.init_from is not None:
                _load_weights(self.model, self.recipe.train.init_from, self.storage)
                self.step.restart_average()
            return
        try:
            self._load(checkpoint or self.checkpoints.restore_step(chosen))
        except DataError as error:  # the chief has read it, so another attempt may
            told = f"worker {self.world.rank} cannot read the checkpoint of step {chosen} that the chief chose"
            raise OSError(f"{told}: {error}") from None

    def go_to_step(self, step: int) -> None:
        """Take weights, optimizer and cursor from the checkpoint of a step. Raises DataError where it is damaged."""
        self._load(self.checkpoints.restore_step(step))

    def _load(self, checkpoint: Checkpoint) -> None:
        check_same_run(checkpoint, self.facts, self.folder)
        state = self._state()
        if _shapes(state) != _shapes(checkpoint.arrays):
            raise UserError(
                f"the checkpoint of step {checkpoint.cursor.step} in {self.folder} does not hold the variables of this "
                f"recipe's model and optimizer; give the run another name (run.name=...)"
            )
        for name, variable in state.items():
            variable.assign(checkpoint.arrays[name])
        self.cursor = checkpoint.cursor

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The model holds the moving average of its weights inside the block, where the recipe keeps one."""
        if not self.step.ema:
            yield
            return
        trained = [local_value(self.strategy, weight).numpy() for weight in self.step.weights]
        for weight, average in zip(self.step.weights, self.step.ema, strict=True):
            weight.assign(local_value(self.strategy, average).numpy())
        try:
            yield
        finally:
            for weight, value in zip(self.step.weights, trained, strict=True):
                weight.assign(value)

    def export(self, url: str) -> str:
        """Write the model as it stands to a `.keras` file that loads anywhere, without a strategy, in float32.

        Raises TakenOverError where the folder is another process's by now.
        Returns the file's sha256.
        """
        precision = "float64" if self.recipe.train.precision == "float64" else "float32"
        plain = build_model(self.recipe.model, dtype_policy=precision, seed=self.recipe.train.seed)
        plain.set_weights([local_value(self.strategy, variable.value).numpy() for variable in self.model.variables])
        with scratch_folder("export") as folder:
            local = folder / MODEL_NAME
            plain.save(local)
            data = local.read_bytes()
        write_while(self.check_owner, url, data, self.storage)
        return hashlib.sha256(data).hexdigest()


def _shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(variable.shape) for name, variable in variables.items()}


def _read_data_set(recipe: Recipe, storage: Storage) -> Manifest:
    if recipe.data.root is None:
        raise UserError("data.root is not set; give the folder or s3:// URL that jobs/prepare.py wrote")
    if recipe.data.version is None:  # who calls the loop without a driver takes the newest
        return read_manifest(storage, recipe.data.root)
    return read_manifest(storage, recipe.data.root, recipe.data.version)


def _load_weights(model: keras.Model, source: str, storage: Storage) -> None:
    """Weights of a run's best model, or of a `.keras` file, into `model`. Raises UserError where they do not fit."""
    url = source if source.endswith(".keras") else RunFolder(source).best_model
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        raise UserError(f"train.init_from: there is no {url}") from None
    with scratch_folder("init") as folder:
        local = folder / MODEL_NAME
        local.write_bytes(data)
        try:
            other = keras.models.load_model(local, compile=False)
            pairs = list(zip(model.variables, other.variables, strict=True))
        except DAMAGED_MODEL as error:
            told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"train.init_from: {url} is no model of this shape ({told})") from None
    for mine, theirs in pairs:
        if tuple(mine.shape) != tuple(theirs.shape):
            raise UserError(
                f"train.init_from: {url} has a weight of shape {tuple(theirs.shape)} where this model has "
                f"{tuple(mine.shape)}; the model section must be the same"
            )
        mine.assign(tf.cast(theirs.value, mine.dtype))

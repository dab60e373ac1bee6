"""What training changes: the variables of network and optimizer, and how far the run has come.

All of it is saved in checkpoints and restored from them; the network is exported for use.
"""

import logging
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from segtrain.architectures.layer_list import layer_list
from segtrain.architectures.layer_records import DROPOUT_DRAWS, DropOut
from segtrain.errors import DataError, UserError
from segtrain.models import build_model
from segtrain.runs.run_folder import MODEL_NAME, RunFolder
from segtrain.runs.status import World
from segtrain.storage.files import Storage
from segtrain.storage.scratch import scratch_folder
from segtrain.training.checkpoint import Checkpoint, Checkpoints, Cursor, facts_of
from segtrain.training.initial_weights import fitting_weights
from segtrain.training.step import TrainStep
from segtrain.training.strategy import local_array, sum_over_workers

DAMAGED_MODEL = (
    *(ValueError, TypeError, KeyError, AttributeError, IndexError, ImportError, NotImplementedError),
    *(OSError, EOFError, RecursionError, zipfile.BadZipFile, zlib.error),
)
"""What Keras raises for a file that is no model or damaged, depending on which part of it is read first."""

log = logging.getLogger(__name__)


class TrainingState:
    """The variables that `step` updates and the cursor, as one."""

    def __init__(
        self, step: TrainStep, world: World, storage: Storage, data_fingerprint: str, check_owner: Callable[[], None]
    ) -> None:
        """`check_owner` raises where the run's folder is another process's by now. It is called before each write."""
        self._step = step
        self._recipe = step.recipe
        self._world = world
        self._storage = storage
        self.facts = facts_of(step.recipe, data_fingerprint)
        self.cursor = Cursor()
        self.checkpoints = Checkpoints(
            step.recipe.run.folder, storage, keep=step.recipe.checkpoint.keep, check_owner=check_owner
        )

    def _variables(self) -> dict[str, Any]:
        """Every variable that a later step depends on, by a name that does not depend on the process."""
        groups = {
            "model": [variable.value for variable in self._step.model.variables],
            "optimizer": [variable.value for variable in self._step.optimizer.variables],
            "ema": self._step.ema,
            "loss_scale": self._step.loss_scale.variables,
        }
        return {f"{name}/{index:04d}": v for name, group in groups.items() for index, v in enumerate(group)}

    def snapshot(self) -> dict[str, np.ndarray]:
        """Copies of all variables, as this worker's first replica holds them."""
        return {name: local_array(self._step.strategy, value) for name, value in self._variables().items()}

    def save(self) -> None:
        """Start saving a checkpoint at the cursor, in the background."""
        self.checkpoints.save(self.snapshot(), self.cursor, self.facts, self._recipe)

    def restore(self) -> None:
        """Go to the newest whole checkpoint, or start from other weights where the recipe says so.

        The chief chooses the checkpoint, so that all workers take the same one.
        """
        checkpoint = self.checkpoints.restore() if self._world.is_chief else None
        chosen = -1 if checkpoint is None else checkpoint.cursor.step
        said = np.array([float(chosen if self._world.is_chief else 0)])
        chosen = int(sum_over_workers(self._step.strategy, said)[0])
        if chosen < 0:
            if self._recipe.train.init_from is not None:
                self._start_from(self._recipe.train.init_from)
            return
        try:
            self.load(checkpoint or self.checkpoints.restore_step(chosen))
        except DataError as error:  # the chief has read it, so another attempt may
            raise OSError(
                f"worker {self._world.rank} cannot read the checkpoint of step {chosen} that the chief chose: {error}"
            ) from None

    def load(self, checkpoint: Checkpoint) -> None:
        """Take variables and cursor from a checkpoint.

        Raises UserError for one of other data, and for one whose variables are not this recipe's. Recipes are compared
        field by field before a launch.
        """
        folder = self._recipe.run.folder
        old, new = (facts.get("data_fingerprint") for facts in (checkpoint.facts, self.facts))
        if old != new:
            raise UserError(
                f"data.root: the run in {folder} was trained on the data set {old}, this one is {new}; "
                f"give the run another name (run.name=...)"
            )
        variables = self._variables()
        held = {name: array.shape for name, array in checkpoint.arrays.items()}
        if held != {name: tuple(variable.shape) for name, variable in variables.items()}:
            raise UserError(
                f"the checkpoint of step {checkpoint.cursor.step} in {folder} does not hold the variables of this "
                f"recipe's model and optimizer; give the run another name (run.name=...)"
            )
        for name, variable in variables.items():
            variable.assign(checkpoint.arrays[name])
        self.cursor = checkpoint.cursor
        if self._world.is_chief and checkpoint.facts.get("dropout_draws") != DROPOUT_DRAWS and self._drops_units():
            log.warning(
                "%s: up to step %d an older version of segtrain drew other units for dropout; from here on the losses "
                "are not those that it would have had",
                folder,
                self.cursor.step,
            )

    def _drops_units(self) -> bool:
        kinds = [layer.kind for layer in layer_list(self._recipe.model)]
        return any(isinstance(kind, DropOut) and kind.rate > 0 for kind in kinds)

    def _start_from(self, source: str) -> None:
        """Take the weights of a run's best model, or of a `.keras` file. Raises UserError where they do not fit."""
        url = source if source.endswith(".keras") else RunFolder(source).best_model
        try:
            data = self._storage.read_bytes(url)
        except FileNotFoundError:
            raise UserError(f"train.init_from: there is no {url}") from None
        with scratch_folder("init") as folder:
            local = folder / MODEL_NAME
            local.write_bytes(data)
            try:
                other = keras.models.load_model(local, compile=False)
                weights = fitting_weights(other, layer_list(self._recipe.model))
                pairs = [(mine, weights.pop(mine.path)) for mine in self._step.model.variables]
                if weights:
                    raise KeyError(f"{next(iter(weights))} is left over")
            except DAMAGED_MODEL as error:
                told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                raise UserError(f"train.init_from: {url} is no model of this shape ({told})") from None
        for mine, theirs in pairs:
            if tuple(mine.shape) != theirs.shape:
                raise UserError(
                    f"train.init_from: {url} has a weight of shape {theirs.shape} where this model has "
                    f"{tuple(mine.shape)}; the model section must be the same"
                )
            mine.assign(tf.cast(theirs, mine.dtype))
        _assign(self._step.ema, self._copies(self._step.averaged))

    def average_statistics(self) -> None:
        """Give every replica the mean of all replicas' moving statistics, where each has moved its own.

        A collective, which all workers must call: before a checkpoint, and before the network is scored.
        """
        strategy = self._step.strategy
        statistics = [v.value for v in self._step.model.non_trainable_variables if v.aggregation == "mean"]
        if not statistics or strategy.num_replicas_in_sync == 1:
            return
        copies = [strategy.experimental_local_results(value) for value in statistics]
        sums = np.concatenate([sum(copy.numpy().astype(np.float64) for copy in local).ravel() for local in copies])
        means = sum_over_workers(strategy, sums) / strategy.num_replicas_in_sync
        ends = np.cumsum([int(np.prod(value.shape)) for value in statistics])
        for value, mean in zip(statistics, np.split(means, ends[:-1]), strict=True):
            value.assign(mean.reshape(value.shape).astype(value.dtype.as_numpy_dtype))

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The model holds the moving average of its weights inside the block, where the recipe keeps one."""
        weights = self._step.averaged
        trained = self._copies(weights)
        _assign(weights, self._copies(self._step.ema))
        try:
            yield
        finally:
            _assign(weights, trained)

    def exported(self) -> bytes:
        """The model as it stands as a `.keras` file that loads anywhere, without a strategy, in float32."""
        train = self._recipe.train
        plain = build_model(
            self._recipe.model,
            dtype_policy="float64" if train.precision == "float64" else "float32",
            seed=train.seed,
        )
        plain.set_weights(self._copies(variable.value for variable in self._step.model.variables))
        with scratch_folder("export") as folder:
            local = folder / MODEL_NAME
            plain.save(local)
            return local.read_bytes()

    def _copies(self, values: Iterable[Any]) -> list[np.ndarray]:
        return [local_array(self._step.strategy, value) for value in values]


def _assign(variables: Iterable[Any], values: Iterable[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)

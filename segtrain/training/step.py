"""One optimizer update over all replicas: the same function for one device and for sixty-four.

Each replica sums the weighted losses of its pictures and divides by the global batch; gradients are summed over
replicas once, judged once, clipped once, and applied once. So N replicas compute what one would.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tensorflow.python.distribute.distribute_utils import regroup

from segtrain.config import Recipe
from segtrain.models.batch_norm import BatchNorm
from segtrain.models.step_context import forward_pass
from segtrain.pipeline import augment
from segtrain.pipeline.batches import PackedBatch, ReplicaBatch, packed, unpacked
from segtrain.training.gradient_sums import GradientSums
from segtrain.training.losses import dice_loss_from_sums, dice_sums_per_image, loss_over_pictures
from segtrain.training.strategy import local_array, sum_over_replicas
from segtrain.training.update import FusedUpdate

LOSS_SCALE_GROWTH_STEPS = 2000


class Wishes(NamedTuple):
    """What this worker adds to the sums of a step, so that all workers learn of it at the same step."""

    leave: bool = False
    """It wants to save and leave."""
    save: bool = False
    """By its clock a checkpoint is due."""
    step_s: float = 0.0
    """Seconds that a step has taken here of late."""


class StepResult(NamedTuple):
    """What one step tells the loop: the same numbers on every worker."""

    loss: float
    """Sum of the pictures' losses over `global_batch_size`."""
    dice: float
    """Sum of the pictures' soft dice."""
    samples: float
    """Number of pictures that counted."""
    leave: float
    """Share of the replicas whose worker wants to leave."""
    save: float
    """Share of the replicas whose worker finds a checkpoint due."""
    step_s: float
    """Mean of the workers' seconds a step."""
    applied: float
    """0 where an overflow in mixed_float16 made all replicas skip the update, else 1."""


def read_results(vectors: Sequence[tf.Tensor]) -> list[StepResult]:
    """What `TrainStep` has returned for some steps, in one copy from the device. Waits for the last of them."""
    return [StepResult(*row) for row in tf.stack(vectors).numpy().tolist()]


NO_WISHES = Wishes()


class LossScale:
    """Dynamic loss scale of mixed_float16; it stays 1 under any other precision."""

    def __init__(self, recipe: Recipe) -> None:
        self.dynamic = recipe.train.precision == "mixed_float16"
        self.scale = tf.Variable(
            recipe.train.initial_loss_scale if self.dynamic else 1.0,
            dtype=tf.float32,
            trainable=False,
            name="loss_scale",
        )
        self.good_steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="good_steps")
        self.variables = [self.scale, self.good_steps]

    def succeed(self) -> None:
        """Count a finite step; double the scale after 2,000 of them in a row."""
        grow = self.good_steps + 1 >= LOSS_SCALE_GROWTH_STEPS
        self.scale.assign(tf.where(grow, self.scale * 2.0, self.scale))
        self.good_steps.assign(tf.where(grow, tf.zeros_like(self.good_steps), self.good_steps + 1))

    def fail(self) -> None:
        """Halve the scale, but not below 1."""
        self.scale.assign(tf.maximum(self.scale / 2.0, 1.0))
        self.good_steps.assign(tf.zeros_like(self.good_steps))


class TrainStep:
    """`step(batch, number, rate, wishes)`, compiled. Build it and what it is given inside `strategy.scope()`."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        recipe: Recipe,
        *,
        accumulation: int = 1,
    ) -> None:
        self.strategy = strategy
        self.model = model
        self.optimizer = optimizer
        self.recipe = recipe
        self.accumulation = accumulation
        self.dtype = tf.float64 if recipe.train.precision == "float64" else tf.float32
        self.weights = [variable.value for variable in model.trainable_variables]
        optimizer.build(model.trainable_variables)
        self.update = FusedUpdate(strategy, optimizer, recipe.optimizer)
        self.loss_scale = LossScale(recipe)
        self._ema_momentum = recipe.train.ema_momentum
        self.averaged = [] if self._ema_momentum is None else self.weights
        """The weights that have a moving average."""
        self.ema = [tf.Variable(local_array(strategy, weight), trainable=False) for weight in self.averaged]
        """Their moving averages."""
        self._has_kernel = any(
            isinstance(layer, BatchNorm) and layer.has_kernel(strategy) for layer in model._flatten_layers()
        )
        self._compiled: dict[tuple[bool, tf.DType], Any] = {}

    def place(self, replicas: Sequence[ReplicaBatch]) -> list[PackedBatch]:
        """One batch a replica of this worker, copied to its device. Any thread may call it."""
        placed = []
        for device, batch in zip(self.strategy.extended.worker_devices, replicas, strict=True):
            # Not `tf.identity`, which takes 17 us of the host's time in place of 2.
            placed.append(PackedBatch(*(tf.convert_to_tensor(x)._copy_to_device(device) for x in packed(batch))))
        return placed

    def __call__(
        self,
        batch: Sequence[PackedBatch],
        number: int,
        rate: float,
        wishes: Wishes = NO_WISHES,
        *,
        whole: bool = False,
    ) -> tf.Tensor:
        """Update the weights once, and return what `read_results` reads: a vector on the device.

        `batch` is what `place` returns, `number` counts updates over all epochs, `rate` is the learning rate. `whole`
        says that each slot of this worker's part holds a picture, which lets batch norm take a faster way.
        """
        with tf.device("/CPU:0"):
            facts = tf.constant([number, rate, *wishes], tf.float64)
        flat = [tensor for part in batch for tensor in part]
        kind = (whole and self._has_kernel, batch[0].images.dtype)
        if kind not in self._compiled:
            with self.strategy.scope():
                step = tf.function(partial(self._step, whole=kind[0]), autograph=False)
                self._compiled[kind] = step.get_concrete_function(*flat, facts)
        compiled = self._compiled[kind]
        # Not through the function's own call, which looks at all arguments anew: 0.3 ms.
        result: tf.Tensor = compiled._call_flat([*flat, facts], compiled.captured_inputs)
        return result

    def _step(self, *arguments: tf.Tensor, whole: bool) -> tf.Tensor:
        *flat, facts = arguments
        parts = [unpacked(PackedBatch(*flat[first : first + 3])) for first in range(0, len(flat), 3)]
        batch = regroup(parts, always_wrap=True)
        gradients, factors, totals, finite = self.strategy.run(self._reduced_gradients, args=(batch, facts, whole))
        if not self.loss_scale.dynamic:
            self._apply(gradients, factors)
        else:
            # Applied outside the replicas: they cannot merge inside a condition.
            finite = self.strategy.experimental_local_results(finite)[0]
            tf.cond(finite, lambda: self._apply(gradients, factors), self.loss_scale.fail)
        return self.strategy.experimental_local_results(totals)[0]

    def _apply(self, gradients: list[Any], factors: dict[str, Any]) -> None:
        """Update weights, slots and averages where they lie, from gradients that are already reduced."""
        self.update.apply(gradients, factors)
        for average, weight in zip(self.ema, self.averaged, strict=True):
            self.strategy.extended.update(average, self._average, args=(weight,), group=False)
        if self.loss_scale.dynamic:
            self.loss_scale.succeed()

    def _average(self, average: tf.Variable, weight: tf.Tensor) -> tf.Operation:
        assert self._ema_momentum is not None
        alpha = tf.constant(1.0 - self._ema_momentum, average.dtype)
        return tf.raw_ops.ResourceApplyGradientDescent(var=average.handle, alpha=alpha, delta=average - weight)

    def _reduced_gradients(
        self, batch: Any, facts: tf.Tensor, whole: bool
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """On one replica: gradients of the global loss (reduced, unscaled, clipped), factors of the update, totals.

        The last value is whether all gradients are finite.
        """
        step, rate = tf.cast(facts[0], tf.int64), tf.cast(facts[1], self.dtype)
        parts = [tf.nest.map_structure(lambda x, i=i: self._part(x, i), batch) for i in range(self.accumulation)]
        dice_totals = self._batch_dice_totals(parts, step)
        wishes = tf.cast(facts[2:], self.dtype) / self.strategy.num_replicas_in_sync
        *before, last = parts
        gradients: list[tf.Tensor] = []
        totals = tf.zeros([3], self.dtype)
        for part in before:
            found, part_totals = self._gradients(self._augmented(part, gradients), step, dice_totals, whole)
            gradients = [a + b for a, b in zip(gradients, found, strict=True)] if gradients else found
            totals += part_totals
        sums = GradientSums(gradients)
        _, part_totals = self._gradients(self._augmented(last, gradients), step, dice_totals, whole, sums)
        reduced, totals = sums.finish(tf.concat([totals + part_totals, wishes], axis=0))
        finite = tf.constant(True)
        if self.loss_scale.dynamic:
            reduced = [gradient / self.loss_scale.scale for gradient in reduced]
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in reduced])
        if self.recipe.train.clip_norm is not None:
            reduced, _ = tf.clip_by_global_norm(reduced, self.recipe.train.clip_norm)
        totals = tf.concat([totals, [tf.cast(finite, self.dtype)]], axis=0)
        return reduced, self.update.factors(rate), totals, finite

    def _augmented(self, part: ReplicaBatch, after: list[tf.Tensor]) -> ReplicaBatch:
        """The part as the network sees it: images float32 in [0, 1] and masks float32, changed as was drawn.

        It comes once `after` is computed, so that the activations of two parts are never in memory together.
        """
        with tf.control_dependencies(after):
            part = tf.nest.map_structure(tf.identity, part)
        images, masks = augment.apply(self.recipe.augment, part.images, part.masks, part.draws)
        return part._replace(images=images, masks=masks)

    def _gradients(
        self,
        part: ReplicaBatch,
        step: tf.Tensor,
        dice_totals: tf.Tensor | None,
        whole: bool,
        sums: GradientSums | None = None,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Scaled gradients of this part's share of the global loss, and its (loss, dice, samples).

        sums: gets the gradients as the backward pass finds them.
        """
        weights = [tf.convert_to_tensor(weight) for weight in self.weights]
        with (
            tf.GradientTape() as tape,
            forward_pass(step=step, keys=part.keys, weights=part.weights, whole=whole, compiled=self.recipe.train.xla),
        ):
            tape.watch(weights)
            used = sums.collecting(weights) if sums else weights
            with keras.StatelessScope(list(zip(self.model.trainable_variables, used, strict=True))) as scope:
                logits = self.model(part.images, training=True)
            for statistic in self.model.non_trainable_variables:
                moved = scope.get_current_value(statistic)
                if moved is not None:
                    statistic.assign(moved)
            loss, totals = self._share_of_loss(part, logits, dice_totals)
            scaled = loss * self.loss_scale.scale if self.loss_scale.dynamic else loss
            gradients = tape.gradient(scaled, weights)
        return gradients, totals

    def _share_of_loss(
        self, part: ReplicaBatch, logits: tf.Tensor, dice_totals: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """This part's share of the global loss, and its (loss, dice, samples) as they are reported."""
        config = self.recipe.loss
        batch_size = tf.cast(self.recipe.train.global_batch_size, self.dtype)
        weights = tf.cast(part.weights, self.dtype)
        sums = tf.cast(dice_sums_per_image(part.masks, logits), self.dtype)
        dice = tf.reduce_sum(weights * (1.0 - dice_loss_from_sums(sums, 0.0)))
        loss = shown = loss_over_pictures(config, part.masks, logits, sums, weights)
        if config.terms.dice and config.dice_over == "batch":
            # The value is the global batch's on every replica and part; the gradient is that of this part alone,
            # so that the sum over replicas and parts is the gradient of the global dice.
            own = _dice_totals(weights, sums)
            everywhere = sum_over_replicas([tf.stop_gradient(own)])[0] if dice_totals is None else dice_totals
            global_sums = own[:2] + tf.stop_gradient(everywhere[:2] - own[:2])
            whole = config.terms.dice * dice_loss_from_sums(global_sums, config.dice_smooth) * everywhere[2]
            loss += whole
            shown += whole / (self.strategy.num_replicas_in_sync * self.accumulation)
        totals = tf.stack([shown / batch_size, dice, tf.reduce_sum(weights)])
        return loss / batch_size, tf.stop_gradient(totals)

    def _batch_dice_totals(self, parts: list[Any], step: tf.Tensor) -> tf.Tensor | None:
        """Dice sums (3,) of the global batch: 2 x intersection, size, pictures. None where they need no extra pass.

        With several parts no part knows the sums of the others. So they come from a first pass, without gradients,
        which does not change the moving statistics.
        """
        if self.accumulation == 1 or self.recipe.loss.dice_over == "image" or not self.recipe.loss.terms.dice:
            return None
        totals = tf.zeros([3], self.dtype)
        for part in parts:
            part = self._augmented(part, [totals])
            with forward_pass(
                step=step, keys=part.keys, weights=part.weights, compiled=self.recipe.train.xla, update_statistics=False
            ):
                logits = self.model(part.images, training=True)
            weights = tf.cast(part.weights, self.dtype)
            sums = tf.cast(dice_sums_per_image(part.masks, logits), self.dtype)
            totals += _dice_totals(weights, sums)
        return sum_over_replicas([tf.stop_gradient(totals)])[0]

    def _part(self, value: tf.Tensor, index: int) -> tf.Tensor:
        size = value.shape[0] // self.accumulation
        return value[index * size : (index + 1) * size]


def _dice_totals(weights: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
    """Pictures' dice sums (B, 2) and weights (B,) to (3,): 2 x intersection, size, number of pictures."""
    return tf.concat([tf.reduce_sum(weights[:, None] * sums, axis=0), [tf.reduce_sum(weights)]], axis=0)

"""One optimizer update over all replicas: the same function for one device and for sixty-four.

Each replica sums the weighted losses of its pictures and divides by the global batch; gradients are summed over
replicas once, judged once, clipped once, and applied once. So N replicas compute what one would.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from segtrain.config import Recipe
from segtrain.models.step_context import forward_pass
from segtrain.pipeline import augment
from segtrain.pipeline.batches import ReplicaBatch
from segtrain.training.losses import dice_loss_from_sums, dice_sums_per_image, loss_over_pictures
from segtrain.training.strategy import local_array, sum_over_replicas

LOSS_SCALE_GROWTH_STEPS = 2000


class StepResult(NamedTuple):
    """What one step tells the loop: scalars, equal on every replica."""

    loss: tf.Tensor
    """Sum of the pictures' losses over `global_batch_size`."""
    dice: tf.Tensor
    """Sum of the pictures' soft dice."""
    samples: tf.Tensor
    """Number of pictures that counted."""
    leave: tf.Tensor
    """How many replicas belong to a worker that wants to leave."""
    applied: tf.Tensor
    """False where an overflow in mixed_float16 made all replicas skip the update."""


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
    """`step(batch, number) -> StepResult`, compiled. Build it and what it is given inside `strategy.scope()`."""

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
        self.loss_scale = LossScale(recipe)
        self.averaged = [] if recipe.train.ema_momentum is None else self.weights
        """The weights that have a moving average."""
        self.ema = [tf.Variable(local_array(strategy, weight), trainable=False) for weight in self.averaged]
        """Their moving averages."""
        self._compiled = tf.function(self._step, jit_compile=recipe.train.xla or None, autograph=False)

    def __call__(self, batch: Any, step: int, *, leave: bool = False) -> StepResult:
        """Update the weights once. `batch` is a per-replica `ReplicaBatch`; `step` counts updates over all epochs.

        `leave` is this worker's own wish. All workers learn of it from the result: it is one more number in a sum that
        is made anyway.
        """
        with self.strategy.scope():
            wish = tf.constant(float(leave), self.dtype)
            return StepResult(*self._compiled(batch, tf.constant(step, tf.int64), wish))

    def _step(self, batch: Any, step: tf.Tensor, wish: tf.Tensor) -> StepResult:
        gradients, totals, finite = self.strategy.run(self._reduced_gradients, args=(batch, step, wish))
        loss, dice, samples, leave, finite = (
            self.strategy.experimental_local_results(value)[0] for value in (*totals, finite)
        )
        if self.loss_scale.dynamic:
            # Applied outside the replicas: they cannot merge inside a condition, and here Keras does not reduce again.
            tf.cond(finite, lambda: self._apply(gradients), self.loss_scale.fail)
        else:
            self._apply(gradients)
            finite = tf.constant(True)
        return StepResult(loss, dice, samples, leave, finite)

    def _apply(self, gradients: list[Any]) -> None:
        """Update weights, slots and averages where they lie, from gradients that are already reduced.

        This is what Keras's `optimizer.apply` does, less its own sum over replicas, which would come after the
        clipping and the judgement of finiteness.
        """
        optimizer, extended = self.optimizer, self.strategy.extended
        rate = keras.ops.convert_to_tensor(optimizer.learning_rate)
        for gradient, weight in zip(gradients, self.weights, strict=True):
            if optimizer.weight_decay:  # decoupled, before the update (Loshchilov and Hutter 2019, algorithm 2)
                extended.update(weight, self._decay, args=(rate,))
            extended.update(weight, lambda w, g, r: optimizer.update_step(g, w, r), args=(gradient, rate), group=False)
        optimizer.iterations.value.assign_add(1)
        for average, weight in zip(self.ema, self.averaged, strict=True):
            extended.update(average, self._average, args=(weight,))
        if self.loss_scale.dynamic:
            self.loss_scale.succeed()

    def _decay(self, weight: tf.Variable, rate: tf.Tensor) -> tf.Operation:
        return weight.assign_sub(weight * tf.cast(rate * self.optimizer.weight_decay, weight.dtype))

    def _average(self, average: tf.Variable, weight: tf.Tensor) -> tf.Operation:
        momentum = tf.cast(self.recipe.train.ema_momentum, average.dtype)
        return average.assign(momentum * average + (1.0 - momentum) * weight)

    def _reduced_gradients(
        self, batch: Any, step: tf.Tensor, wish: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor]:
        """On one replica: gradients of the global loss (reduced, unscaled, clipped), totals, whether all is finite."""
        parts = [tf.nest.map_structure(lambda x, i=i: self._part(x, i), batch) for i in range(self.accumulation)]
        dice_totals = self._batch_dice_totals(parts, step)
        gradients: list[tf.Tensor] = []
        totals = tf.zeros([3], self.dtype)
        for part in parts:
            part_gradients, part_totals = self._gradients(self._augmented(part, gradients), step, dice_totals)
            gradients = [a + b for a, b in zip(gradients, part_gradients, strict=True)] if gradients else part_gradients
            totals += part_totals
        *reduced, totals = sum_over_replicas([*gradients, tf.concat([totals, [wish]], axis=0)])
        reduced = [gradient / tf.cast(self.loss_scale.scale, gradient.dtype) for gradient in reduced]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in reduced])
        if self.recipe.train.clip_norm is not None:
            reduced, _ = tf.clip_by_global_norm(reduced, self.recipe.train.clip_norm)
        return reduced, tf.unstack(totals), finite

    def _augmented(self, part: ReplicaBatch, after: list[tf.Tensor]) -> ReplicaBatch:
        """The part as the network sees it: images float32 in [0, 1] and masks float32, changed as was drawn.

        It comes once `after` is computed, so that the activations of two parts are never in memory together.
        """
        with tf.control_dependencies(after):
            part = tf.nest.map_structure(tf.identity, part)
        images, masks = augment.apply(self.recipe.augment, part.images, part.masks, part.draws)
        return part._replace(images=images, masks=masks)

    def _gradients(
        self, part: ReplicaBatch, step: tf.Tensor, dice_totals: tf.Tensor | None
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Scaled gradients of this part's share of the global loss, and its (loss, dice, samples)."""
        with (
            tf.GradientTape() as tape,
            forward_pass(step=step, keys=part.keys, weights=part.weights),
        ):
            logits = self.model(part.images, training=True)
            loss, totals = self._share_of_loss(part, logits, dice_totals)
            scaled = loss * tf.cast(self.loss_scale.scale, loss.dtype)
            gradients = tape.gradient(scaled, self.weights)
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
            with forward_pass(step=step, keys=part.keys, weights=part.weights, update_statistics=False):
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

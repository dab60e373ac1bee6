"""Trains the same steps in one world (so many workers and replicas) and returns losses, weights and gradients.

Run as a script, `worlds.py REPLICAS OUT.npz few|most|all`, it is one world of one process: collective operations
remember the size of their group, so each number of replicas needs a process of its own. Through Ray, each worker calls
`outcome`.
"""

import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from segtrain.config import Recipe, override
from segtrain.models import build_model
from segtrain.pipeline.augment import draw_augmentation
from segtrain.pipeline.batches import PackedBatch, ReplicaBatch
from segtrain.runs.status import World
from segtrain.training.optimizers import build_optimizer
from segtrain.training.step import StepResult, TrainStep, read_results
from segtrain.training.strategy import build_strategy, configure_process, local_array

BATCH, HEIGHT, WIDTH, STEPS = 8, 16, 24, 20
SMALL = ["model.filters=4", "model.depth=2", "model.norm_groups=2", f"train.global_batch_size={BATCH}"]
EXACT = [*SMALL, "train.precision=float64", "optimizer.learning_rate=0.01"]
# Every value of norm, loss, optimizer at least twice; dropout and the rest of the step's options once more.
SETTINGS = {
    "no norm, adam, dice per image": [*EXACT, "model.norm=none"],
    "group norm, sgd, dice over batch": [*EXACT, "model.norm=group", "optimizer.kind=sgd", "loss.dice_over=batch"],
    "no norm, sgd, dice over batch": [*EXACT, "model.norm=none", "optimizer.kind=sgd", "loss.dice_over=batch"],
    "group norm, adam, dice per image": [*EXACT, "model.norm=group"],
    "dropout, adamw, clipping, ema": [
        *EXACT,
        "model.norm=none",
        "model.dropout=0.2",
        "optimizer.kind=adamw",
        "train.clip_norm=0.5",
        "train.ema_momentum=0.9",
    ],
}
# Each value of norm, loss and optimizer once, where a world is slow: four replicas and two workers share two cores.
FEW = ("no norm, adam, dice per image", "group norm, sgd, dice over batch")
# What is compared by default. With the two that are left it is every value in two settings, half as long again.
MOST = (*FEW, "dropout, adamw, clipping, ema")
EXTENTS = {"few": FEW, "most": MOST, "all": tuple(SETTINGS)}
# With a rate of 1 and plain SGD the change of the weights is the gradient.
GRADIENTS = {
    "float32, no norm": [*SMALL, "model.norm=none", "optimizer.kind=sgd", "optimizer.learning_rate=1.0"],
    "float32, synchronized": [*SMALL, "model.norm=synchronized", "optimizer.kind=sgd", "optimizer.learning_rate=1.0"],
}
COMPILED = {"float32, compiled": [*GRADIENTS["float32, synchronized"], "train.xla=true"]}
# Left out where a world is slow: its graph is half as large again on every replica.
REMATERIALIZED = {"float32, rematerialized": [*GRADIENTS["float32, synchronized"], "train.rematerialize=true"]}
OVERFLOW = [*SMALL, "model.norm=none", "train.precision=mixed_float16"]


class Trained:
    """A network and its step, trained on made-up global batches that are the same in every world."""

    def __init__(self, strategy: tf.distribute.Strategy, world: World, settings: list[str], accumulation: int = 1):
        self.recipe = recipe = override(Recipe(), settings)
        self.strategy, self.world = strategy, world
        with strategy.scope():
            again = bool(recipe.train.rematerialize)
            self.model = build_model(recipe.model, dtype_policy=recipe.train.precision, seed=7, rematerialize=again)
            self.step = TrainStep(
                strategy, self.model, build_optimizer(recipe.optimizer), recipe, accumulation=accumulation
            )

    def train(self, steps: int, *, damage: int | None = None) -> list[StepResult]:
        """So many steps; an infinity is planted in picture `damage` of every global batch."""
        rate = self.recipe.optimizer.learning_rate
        return read_results([self.step(self.batch(number, damage), number, rate) for number in range(steps)])

    def weights(self) -> list[np.ndarray]:
        return [local_array(self.strategy, variable.value) for variable in self.model.variables]

    def batch(self, number: int, damage: int | None = None) -> list[PackedBatch]:
        size = self.recipe.train.global_batch_size
        random = np.random.default_rng(number)
        # Not uint8, as in real batches: there an infinity could not be planted.
        images = 255 * random.random((size, HEIGHT, WIDTH, 3), np.float32)
        masks = (random.random((size, HEIGHT, WIDTH, 1)) > 0.6).astype(np.uint8)
        if damage is not None:
            images[damage] = np.inf
        keys = np.arange(size, dtype=np.int64) + 1000 * number
        draws = draw_augmentation(self.recipe.augment, 0, 0, keys, HEIGHT, WIDTH)
        whole = ReplicaBatch(images, masks, np.ones(size, np.float32), keys, draws)
        share, first = size // self.world.replicas, self.world.rank * self.world.replicas_per_worker
        starts = [(first + replica) * share for replica in range(self.world.replicas_per_worker)]
        parts = [tf.nest.map_structure(lambda value, at=at: value[at : at + share], whole) for at in starts]
        return self.step.place(parts)


def outcome(world: World, names: Sequence[str] = tuple(SETTINGS)) -> dict[str, np.ndarray]:
    """Losses and final weights of these settings, with and without accumulation; gradients; the overflow's effect."""
    configure_process(world, deterministic=True, seed=0, tf32=True)
    strategy = build_strategy(world)
    found: dict[str, np.ndarray] = {}
    for name in names:
        for accumulation in (1, 2, 8) if world.replicas == 1 and name == FEW[0] else (1, 2):
            trained = Trained(strategy, world, SETTINGS[name], accumulation)
            losses = [result.loss for result in trained.train(STEPS)]
            found[f"{name}/accumulation {accumulation}/losses"] = np.array(losses)
            found[f"{name}/accumulation {accumulation}/weights"] = _flat(trained.weights())
    gradients = GRADIENTS | COMPILED
    for name, settings in (gradients if tuple(names) == FEW else gradients | REMATERIALIZED).items():
        trained = Trained(strategy, world, settings)
        before = trained.weights()
        trained.train(1)
        found[f"{name}/gradients"] = _flat(before) - _flat(trained.weights())
    found |= _overflow(strategy, world)
    return found


def _overflow(strategy: tf.distribute.Strategy, world: World) -> dict[str, np.ndarray]:
    """An infinity on the last replica alone, after one sound step."""
    trained = Trained(strategy, world, OVERFLOW)
    (sound,) = trained.train(1)
    before, scale = trained.weights(), float(local_array(strategy, trained.step.loss_scale.scale))
    (skipped,) = trained.train(1, damage=BATCH - 1)
    copies = [strategy.experimental_local_results(variable.value) for variable in trained.model.variables]
    return {
        "overflow/sound step applied": np.array(bool(sound.applied)),
        "overflow/step applied": np.array(bool(skipped.applied)),
        "overflow/change": _flat(before) - _flat(trained.weights()),
        "overflow/scale": np.array(float(local_array(strategy, trained.step.loss_scale.scale)) / scale),
        "overflow/replicas agree": np.array(
            all(np.array_equal(copy.numpy(), of_one[0].numpy()) for of_one in copies for copy in of_one)
        ),
    }


def _flat(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays])


if __name__ == "__main__":
    np.savez(sys.argv[2], **outcome(World(replicas_per_worker=int(sys.argv[1])), EXTENTS[sys.argv[3]]))

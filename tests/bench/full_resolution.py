"""What one training step on a whole picture of 1918x1280 takes: memory and time, with and without rematerialization.

    .venv/bin/python -m tests.bench.full_resolution [--only 1,2] [--steps 3]

Each setting has a process of its own: a U-Net of 16 filters and depth 4 with batch norm, one real `TrainStep` after the
other on noise. Memory is the process's highest (VmHWM) above what it was with all libraries imported. `keras` is the
same network of Keras's own layers alone. A CPU without AVX-512 computes bfloat16 in TensorFlow's slow kernels, so the
times of these rows can be compared only with each other.
"""

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

from segtrain.config import Recipe, load_recipe
from segtrain.errors import gib
from segtrain.process import before_tensorflow
from tests.bench.measuring import process_memory, run_module

MODEL = ["model.filters=16", "model.depth=4", "data.height=1280", "data.width=1918", "train.global_batch_size=1"]
ROWS = {
    "keras": ["model.norm=batch"],
    "plain": [],
    "rematerialized": ["train.rematerialize=true"],
    "bfloat16": ["train.precision=mixed_bfloat16"],
    "bfloat16 rematerialized": ["train.precision=mixed_bfloat16", "train.rematerialize=true"],
    "8 x 1": ["train.global_batch_size=8", "train.per_replica_batch_size=1"],
    "8 x 1 rematerialized": [
        "train.global_batch_size=8",
        "train.per_replica_batch_size=1",
        "train.rematerialize=true",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: [int(number) for number in text.split(",")], help="numbers of rows")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 1918), metavar=("HEIGHT", "WIDTH"))
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    before_tensorflow()
    size = [f"data.height={arguments.size[0]}", f"data.width={arguments.size[1]}"]
    for number, (name, settings) in enumerate(ROWS.items(), start=1):
        if arguments.only is None or number in arguments.only:
            child = ("--child", name, str(arguments.steps), *MODEL, *settings, *size)
            memory, imported, seconds = run_module("tests.bench.full_resolution", *child)
            print(
                f"{number} {name:24} {gib(memory)} above {gib(imported)} of libraries, {seconds:.2f} s a step",
                flush=True,
            )


def measure(name: str, steps: int, recipe: Recipe) -> tuple[int, int, float]:
    """(bytes above the imported libraries, these, median seconds of the steps after the first)."""
    import numpy as np
    import tensorflow as tf

    from segtrain.models import build_model
    from segtrain.pipeline.augment import draw_augmentation
    from segtrain.pipeline.batches import ReplicaBatch
    from segtrain.runs.status import World
    from segtrain.training.optimizers import build_optimizer
    from segtrain.training.step import TrainStep
    from segtrain.training.strategy import build_strategy, configure_process
    from tests.bench.memory_prediction import noise

    world = World()
    configure_process(world, deterministic=False, seed=0, tf32=True)
    strategy, train = build_strategy(world), recipe.train
    imported = process_memory("VmRSS")
    with strategy.scope():
        if name == "keras":
            model = _keras_unet(recipe.model.filters, recipe.model.depth)
        else:
            policy, again = train.precision, bool(train.rematerialize)
            model = build_model(recipe.model, dtype_policy=policy, rematerialize=again)
        passes = train.global_batch_size // (train.per_replica_batch_size or train.global_batch_size)
        step = TrainStep(strategy, model, build_optimizer(recipe.optimizer), recipe, accumulation=passes)
    pictures = train.global_batch_size
    keys = np.arange(pictures, dtype=np.int64)
    draws = draw_augmentation(recipe.augment, 0, 0, keys, recipe.data.height, recipe.data.width)
    small = (tf.ones(pictures), tf.constant(keys), tf.nest.map_structure(tf.constant, draws))
    batch = step.place([ReplicaBatch(*noise(recipe, pictures), *small)])
    seconds = []
    for number in range(steps):
        started = time.perf_counter()
        step(batch, number, recipe.optimizer.learning_rate, whole=True).numpy()
        seconds.append(time.perf_counter() - started)
    return process_memory("VmHWM") - imported, imported, statistics.median(seconds[1:] or seconds)


def _keras_unet(filters: int, depth: int) -> Any:
    """The same network of Keras's layers alone; sizes that the depth divides."""
    import keras

    def block(x: Any, channels: int) -> Any:
        for _ in range(2):
            x = keras.layers.Conv2D(channels, 3, padding="same")(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        return x

    picture = keras.Input((None, None, 3))
    x, skips = keras.layers.ZeroPadding2D(((0, 0), (1, 1)))(picture), []
    for level in range(depth):
        x = block(x, filters * 2**level)
        skips.append(x)
        x = keras.layers.MaxPooling2D(2)(x)
    x = block(x, filters * 2**depth)
    for level in reversed(range(depth)):
        x = keras.layers.Conv2DTranspose(filters * 2**level, 3, strides=2, padding="same")(x)
        x = block(keras.layers.Concatenate()([skips[level], x]), filters * 2**level)
    logits = keras.layers.Conv2D(1, 1)(x)
    return keras.Model(picture, keras.layers.Cropping2D(((0, 0), (1, 1)))(logits))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), load_recipe(None, sys.argv[4:]))))
    else:
        main()

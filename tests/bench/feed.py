"""segtrain's own pipeline as a reader: batches of `TrainingData` for one worker with one replica.

    python -m tests.bench.feed [--pictures 512] [--batch 16] [--rounds 6]

As a program it says how many pictures a second, at 96x128, come from memory where nothing is left to read or decode:
one line of JSON with the rate of each round, and CPU microseconds a picture over all of them.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf

from segtrain.config import Recipe
from segtrain.config.batch_split import batch_split
from segtrain.dataset.data_set import read_data_set
from segtrain.pipeline import augment
from segtrain.pipeline.batches import ReplicaBatch
from segtrain.pipeline.sample_order import sample_order
from segtrain.pipeline.worker_data import TrainingData
from segtrain.runs.status import World
from segtrain.storage.files import Storage
from tests.bench.measuring import Batch, Measured, consume, from_start, steady
from tests.bench.pairs import HEIGHT, WIDTH, make_pairs

FULL_BATCH = 8
"""16 pictures of 1918x1280 would be 160 MB; every reader at full resolution has this batch."""
SMALL_BATCH = 16
EVERY_CHANGE = {"rotate_degrees": 10.0, "scale": 0.1, "shift": 0.05, "contrast": 0.1, "brightness": 0.1}


def full_recipe(root: str, **data: Any) -> Recipe:
    """Whole pictures at full resolution; nothing is kept in memory."""
    return _recipe(root, FULL_BATCH, {"height": HEIGHT, "width": WIDTH, "cache": "off"} | data)


def small_recipe(root: str, augmented: dict[str, float] | None = None, **data: Any) -> Recipe:
    """96x128, with the default flip and what else is given."""
    return _recipe(root, SMALL_BATCH, {"height": 96, "width": 128} | data, augmented)


def crop_recipe(root: str) -> Recipe:
    """512x512 windows of full resolution."""
    return _recipe(root, FULL_BATCH, {"height": 512, "width": 512, "fit": "crop", "cache": "off"})


def _recipe(root: str, batch: int, data: dict[str, Any], augmented: dict[str, float] | None = None) -> Recipe:
    return Recipe.from_dict(
        {"data": {"root": root} | data, "train": {"global_batch_size": batch}, "augment": augmented or {}}
    )


@contextmanager
def training_data(recipe: Recipe) -> Iterator[TrainingData]:
    """The data set opened anew, as a worker that trains alone opens it."""
    storage, root = Storage(recipe.storage), recipe.data.root
    assert root is not None
    data_set = read_data_set(storage, recipe.data)
    lanes = sample_order(recipe, data_set.manifest).lanes
    split = batch_split(recipe.train.global_batch_size, lanes, 1, 1, None)
    with closing(TrainingData(recipe, data_set, storage, World(), split)) as data:
        yield data


def batches(data: TrainingData) -> Iterator[Batch]:
    """Uint8 images and masks as they are handed to the device, from epoch 0 on without end."""
    for step in data.batches(0, 0):
        yield Batch(len(step.ids), step.replicas[0][:2])


def augmented_batches(data: TrainingData, recipe: Recipe) -> Iterator[Batch]:
    """Float32 images and masks after what the device does to them in the compiled step."""

    @tf.function
    def on_device(batch: ReplicaBatch) -> tuple[tf.Tensor, tf.Tensor]:
        return augment.apply(recipe.augment, batch.images, batch.masks, batch.draws)

    for step in data.batches(0, 0):
        yield Batch(len(step.ids), on_device(step.replicas[0]))


def steady_epochs(recipe: Recipe) -> Measured:
    """The second epoch of one iterator, with nothing kept of the first."""
    with training_data(recipe) as data:
        return steady(batches(data), data.samples_per_epoch, data.samples_per_epoch)


def first_epoch(recipe: Recipe) -> Measured:
    """The first epoch of a data set that was just opened, the wait for the first batch included."""
    with training_data(recipe) as data:
        return from_start(lambda: batches(data), data.samples_per_epoch)


def later_epochs(recipe: Recipe, pairs: int) -> Measured:
    """Epochs after the first one, at least `pairs` pairs, with what the device does."""
    with training_data(recipe) as data:
        stream = augmented_batches(data, recipe)
        consume(stream, data.samples_per_epoch)
        return steady(stream, data.samples_per_epoch, pairs)


def from_memory(root: str, batch: int, rounds: int) -> tuple[list[float], float]:
    """Pictures a second of each of `rounds` times 20 epochs, all kept decoded, and CPU seconds a picture."""
    recipe = small_recipe(root, cache="memory").updated({"train.global_batch_size": batch})
    with training_data(recipe) as data:
        stream, pictures = batches(data), data.samples_per_epoch
        consume(stream, 2 * pictures)
        began = time.process_time()
        found = [steady(stream, 0, 20 * pictures) for _ in range(rounds)]
        cpu_s = time.process_time() - began
    return [round(each.rate) for each in found], cpu_s / sum(each.pairs for each in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--batch", type=int, default=SMALL_BATCH)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rates, cpu_s = from_memory(make_pairs(Path(folder), options.pictures, 8).root, options.batch, options.rounds)
    print(json.dumps({"batch": options.batch, "pictures_per_s": rates, "cpu_us_per_picture": round(1e6 * cpu_s, 1)}))


if __name__ == "__main__":
    main()

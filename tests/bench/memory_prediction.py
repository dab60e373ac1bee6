"""How near `segtrain.memory` comes to what a training step and a forward pass really take, on this CPU.

    .venv/bin/python -m tests.bench.memory_prediction [--only 1,5] [--json FILE]

Each setting has a process of its own: a real `TrainStep` with its optimizer, on batches of noise laid out as a run's.
Measured is the highest resident memory (VmHWM of Linux's /proc) of `STEPS` steps above that of the same process after
a step of the smallest network of the same shape. Libraries (0.7 GiB), and the threads and code that TensorFlow makes
once (0.1 GiB), are left out that way: they belong to the process and not to the device, and nothing predicts them.
`above imports` is the same peak above the imported libraries alone.

The process is set up as a run's is, with oneDNN's kernels (TF_ENABLE_ONEDNN_OPTS=0 in the environment measures and
predicts TensorFlow's own). But what is freed is given back at once (`GIVE_BACK_BYTES`): `segtrain.process` lets
glibc keep half a GiB for the pictures to come, which would count as needed here. The aim is a prediction within 20 % on
all twelve settings of training.
"""

import argparse
import ctypes
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from segtrain.config import Recipe, load_recipe, override
from segtrain.errors import gib
from segtrain.memory import Footprint, evaluation_footprint, training_footprint
from segtrain.process import before_tensorflow
from tests.bench.measuring import process_memory, run_module

STEPS = 2
AIM = 0.2
GIVE_BACK_BYTES = 2**18
MALLOC_TRIM_THRESHOLD, MALLOC_TOP_PAD, MALLOC_MMAP_THRESHOLD = -1, -2, -3

SMALL, MIDDLE, LARGE = (
    "data.height=256 data.width=384",
    "data.height=480 data.width=640",
    "data.height=1280 data.width=1918",
)
TRAINING = [
    f"model.filters=8 model.depth=4 {LARGE} train.global_batch_size=1",
    f"model.filters=8 model.depth=4 {LARGE} train.global_batch_size=1 train.rematerialize=true",
    f"model.filters=8 model.depth=5 {MIDDLE} train.global_batch_size=4",
    f"model.filters=8 model.depth=3 {MIDDLE} train.global_batch_size=8 train.rematerialize=true",
    f"model.filters=16 model.depth=3 {MIDDLE} train.global_batch_size=2",
    f"model.filters=16 model.depth=5 {MIDDLE} train.global_batch_size=3 train.rematerialize=true",
    f"model.filters=16 model.depth=4 {SMALL} train.global_batch_size=6",
    f"model.filters=32 model.depth=4 {SMALL} train.global_batch_size=2 train.clip_norm=1.0",
    f"model.filters=32 model.depth=3 {SMALL} train.global_batch_size=4 train.rematerialize=true",
    f"model.filters=32 model.depth=5 {SMALL} train.global_batch_size=2 train.ema_momentum=0.99",
    f"model.filters=64 model.depth=3 {SMALL} train.global_batch_size=1",
    f"model.filters=64 model.depth=4 {SMALL} train.global_batch_size=2 train.rematerialize=true",
]
FORWARD = [
    f"model.filters=16 model.depth=4 {LARGE} evaluation.batch_size=1",
    f"model.filters=32 model.depth=3 {MIDDLE} evaluation.batch_size=4",
]


class Measured(NamedTuple):
    """Bytes of one setting."""

    peak: int
    """Above the process with a step of a tiny network behind it."""
    above_imports: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: [int(number) for number in text.split(",")], help="numbers of rows")
    parser.add_argument("--json", help="file for every figure")
    arguments = parser.parse_args()
    settings = [("train", text) for text in TRAINING] + [("forward", text) for text in FORWARD]
    rows = arguments.only or range(1, len(settings) + 1)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    progress, found = Console(stderr=True, highlight=False), []
    for number in rows:
        kind, text = settings[number - 1]
        measured = Measured(*run_module("tests.bench.memory_prediction", "--child", kind, *text.split()))
        predicted = predict(kind, load_recipe(None, text.split()))
        progress.print(f"{number}: {kind} {text}: {gib(predicted.total)} predicted, {gib(measured.peak)} measured")
        found.append((number, kind, text, predicted, measured))
    Console(width=None if sys.stdout.isatty() else 150).print(_table(found))
    if arguments.json:
        facts = [
            {"kind": kind, "setting": text, "predicted": predicted.total, **measured._asdict()}
            for _, kind, text, predicted, measured in found
        ]
        Path(arguments.json).write_text(json.dumps(facts, indent=1))


def _table(found: Sequence[tuple[int, str, str, Footprint, Measured]]) -> Table:
    table = Table(title="Peak memory", title_justify="left")
    for name in ("", "", "setting"):
        table.add_column(name)
    for name in ("predicted", "measured", "difference", "above imports"):
        table.add_column(name, justify="right")
    for number, kind, text, predicted, measured in found:
        difference = predicted.total / measured.peak - 1
        colour = "green" if abs(difference) <= AIM else "red"
        table.add_row(
            str(number),
            kind,
            " ".join(field.partition(".")[2] for field in text.split()),
            gib(predicted.total),
            gib(measured.peak),
            f"[{colour}]{difference:+.0%}[/{colour}]",
            gib(measured.above_imports),
        )
    return table


def predict(kind: str, recipe: Recipe) -> Footprint:
    """What `segtrain.memory` says of a step on the whole global batch, or of scoring a batch."""
    size = {"height": recipe.data.height, "width": recipe.data.width}
    if kind == "train":
        train = recipe.train
        batch = train.per_replica_batch_size or train.global_batch_size
        return training_footprint(
            recipe,
            batch=batch,
            rematerialize=bool(train.rematerialize),
            accumulation=train.global_batch_size // batch,
            **size,
        )
    return evaluation_footprint(recipe, batch=recipe.evaluation.batch_size, **size)


def measure(kind: str, recipe: Recipe) -> Measured:
    """Run `STEPS` steps in this process and see how far its memory goes up."""
    before_tensorflow()
    from segtrain.runs.status import World
    from segtrain.training.strategy import build_strategy, configure_process

    world = World(workers=1, rank=0, replicas_per_worker=1, gpus_per_worker=0)
    configure_process(world, deterministic=False, seed=0, tf32=True)
    _give_back_memory()
    imported = process_memory("VmRSS")
    strategy = build_strategy(world)
    run = _train if kind == "train" else _forward
    side = 2 ** (recipe.model.depth + 1)
    least = recipe.model.norm_groups if recipe.model.kind == "unet" and recipe.model.norm == "group" else 1
    tiny = override(recipe, [f"model.filters={least}", f"data.height={side}", f"data.width={side}"])
    run(strategy, tiny, steps=1)
    warm = process_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew, proc_pid_clear_refs(5)
    run(strategy, recipe, steps=STEPS)
    peak = process_memory("VmHWM")
    return Measured(peak - warm, peak - imported)


def _train(strategy: Any, recipe: Recipe, *, steps: int) -> None:
    import numpy as np
    import tensorflow as tf

    from segtrain.config.batch_split import PLACED_BATCHES
    from segtrain.models import build_model
    from segtrain.pipeline.augment import draw_augmentation
    from segtrain.pipeline.batches import ReplicaBatch
    from segtrain.training.optimizers import build_optimizer
    from segtrain.training.step import TrainStep

    train = recipe.train
    pictures = train.global_batch_size
    with strategy.scope():
        model = build_model(
            recipe.model, dtype_policy=train.precision, seed=train.seed, rematerialize=bool(train.rematerialize)
        )
        accumulation = pictures // (train.per_replica_batch_size or pictures)
        step = TrainStep(strategy, model, build_optimizer(recipe.optimizer), recipe, accumulation=accumulation)
    keys = np.arange(pictures, dtype=np.int64)
    placed = []
    for number in range(steps + PLACED_BATCHES):
        draws = draw_augmentation(recipe.augment, train.seed, number, keys, recipe.data.height, recipe.data.width)
        batch = ReplicaBatch(
            *noise(recipe, pictures), tf.ones(pictures), tf.constant(keys), tf.nest.map_structure(tf.constant, draws)
        )
        placed.append(step.place([batch]))
        if len(placed) > PLACED_BATCHES:
            step(placed.pop(0), number, recipe.optimizer.learning_rate, whole=True).numpy()


def _forward(strategy: Any, recipe: Recipe, *, steps: int) -> None:
    import numpy as np

    from segtrain.config.batch_split import FORWARDED_BATCHES
    from segtrain.models import build_model
    from segtrain.pipeline.batches import PictureBatch
    from segtrain.pipeline.prefetch import started_ahead
    from segtrain.training.evaluation import compiled_forward
    from segtrain.training.strategy import place

    with strategy.scope():
        model = build_model(recipe.model, dtype_policy=recipe.train.precision)
    forward = compiled_forward(strategy, model)
    pictures = recipe.evaluation.batch_size
    sizes = np.tile((recipe.data.height, recipe.data.width), (pictures, 1))
    forwarded = (
        forward(place(strategy, [PictureBatch(*noise(recipe, pictures), sizes)]))
        for _ in range(steps + FORWARDED_BATCHES)
    )
    for on_device in started_ahead(forwarded, FORWARDED_BATCHES):
        strategy.experimental_local_results(on_device.logits)[0].numpy()


def noise(recipe: Recipe, pictures: int) -> tuple[Any, Any]:
    """A batch as `segtrain.pipeline.worker_data` makes it, of pictures without any meaning."""
    import numpy as np

    from segtrain.pipeline.batches import DecodedPicture, stack

    size = (recipe.data.height, recipe.data.width)
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = generator.integers(0, 2, size, dtype=np.uint8)
    return stack([DecodedPicture(str(number), number, image, mask) for number in range(pictures)], *size)


def _give_back_memory() -> None:
    """Every block that a tensor of some size has lain in goes back to the kernel when it is freed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(MALLOC_MMAP_THRESHOLD, GIVE_BACK_BYTES)
    mallopt(MALLOC_TRIM_THRESHOLD, GIVE_BACK_BYTES)
    mallopt(MALLOC_TOP_PAD, GIVE_BACK_BYTES)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(sys.argv[2], load_recipe(None, sys.argv[3:]))))
    else:
        main()

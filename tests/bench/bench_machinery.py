"""What the machinery costs: the bare step on tensors in memory, the real loop, the real loop through Ray.

    make bench                                  all benchmarks
    .venv/bin/python -m pytest -m '' -s tests/bench/bench_machinery.py

A U-Net of 16 filters at 96x128, batch 16, from the second epoch on. The rate of a shared machine drifts by a fifth
within minutes, so epochs of the real loop and as many bare steps take turns in one process and each pair gives a
ratio; the loop with and without Ray, which must be processes of their own, take turns too.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
PICTURES, EPOCHS, TURNS, PAIRS = 200, 4, 2, 6
RECIPE = [
    "data.height=96",
    "data.width=128",
    "model.filters=16",
    "train.global_batch_size=16",
    f"train.epochs={EPOCHS}",
    f"evaluation.every_epochs={EPOCHS}",
    "evaluation.panels=0",
]
PAIRED = """
import sys, time
import numpy as np, tensorflow as tf
from segtrain.config import Recipe, override
from segtrain.training.losses import dice_sums_per_image, loss_over_pictures
from segtrain.models import build_model
from segtrain.training.optimizers import build_optimizer
from segtrain.training.loop import train_epoch
from segtrain.training.run import Run
from segtrain.runs.status import NOBODY
from segtrain.training.clock import Watch
from segtrain.runs.status import World

recipe = override(Recipe(), sys.argv[2:])
random = np.random.default_rng(0)
images = tf.constant(random.random((16, 96, 128, 3), np.float32))
masks = tf.constant((random.random((16, 96, 128, 1)) > 0.5).astype(np.float32))

with Run(recipe, World()) as run:
    model, optimizer = build_model(recipe.model), build_optimizer(recipe.optimizer)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            sums = dice_sums_per_image(masks, logits)
            loss = loss_over_pictures(recipe.loss, masks, logits, sums, tf.ones(16)) / 16
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    watch = Watch(recipe, run.state.cursor, run.training_data.steps_per_epoch, NOBODY)
    for epoch in range(int(sys.argv[1])):
        started = time.perf_counter()
        measured = train_epoch(run, watch)
        run.record.epoch(run.state.cursor.step, measured, {})
        run.state.cursor.start_epoch(epoch + 1)
        run.save()
        loop = measured["samples"] / (time.perf_counter() - started)
        run.state.checkpoints.wait()
        started = time.perf_counter()
        for _ in range(run.training_data.steps_per_epoch):
            float(step())
        print(loop, 16 * run.training_data.steps_per_epoch / (time.perf_counter() - started))
"""
LOOP = """
import sys
from segtrain.config import Recipe, override
from segtrain.training.loop import train
from segtrain.runs.status import World

train(override(Recipe(), sys.argv[1:]), World())
"""


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "raw" / "images").mkdir(parents=True)
    (folder / "raw" / "masks").mkdir()
    random = np.random.default_rng(0)
    for number in range(PICTURES):
        mask = np.zeros((192, 256), np.uint8)
        mask[40 + number % 50 : 140, 60 : 200 - number % 50] = 255
        image = random.integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(image).resize((256, 192)).save(folder / "raw" / "images" / f"{number:04}.jpg")
        Image.fromarray(mask).save(folder / "raw" / "masks" / f"{number:04}.png")
    _python("jobs/prepare.py", "folder", str(folder / "data"), f"source.path={folder / 'raw'}")
    return folder


def test_the_loop_beside_the_bare_step(data_set: Path) -> None:
    lines = _python("-c", PAIRED, str(PAIRS + 1), "run.name=paired", *_settings(data_set)).splitlines()[1:]
    pairs = [tuple(map(float, line.split())) for line in lines]
    ratios = [loop / bare for loop, bare in pairs]
    print("\nreal loop / bare step, images/s: " + "  ".join(f"{loop:.1f}/{bare:.1f}" for loop, bare in pairs))
    print(f"median ratio {statistics.median(ratios):.3f}  ({' '.join(f'{ratio:.3f}' for ratio in ratios)})")


def test_the_loop_through_ray_beside_the_loop(data_set: Path) -> None:
    rates: dict[str, list[float]] = {"loop": [], "loop through Ray": []}
    recipe = data_set / "empty.yaml"
    recipe.write_text("")
    for turn in range(TURNS):
        _python("-c", LOOP, f"run.name=loop-{turn}", *_settings(data_set))
        rates["loop"] += _epoch_rates(data_set / "runs" / f"loop-{turn}")
        _python("jobs/train.py", str(recipe), f"run.name=ray-{turn}", *_settings(data_set))
        rates["loop through Ray"] += _epoch_rates(data_set / "runs" / f"ray-{turn}")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print()
    for name, values in rates.items():
        print(f"{name:18} {medians[name]:6.2f} images/s  ({' '.join(f'{value:.1f}' for value in values)})")
    print(f"through Ray, of the same loop without Ray: {medians['loop through Ray'] / medians['loop']:.3f}")


def _settings(data_set: Path) -> list[str]:
    return [f"data.root={data_set / 'data'}", f"run.storage={data_set / 'runs'}", *RECIPE]


def test_help_answers_quickly() -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        _python("jobs/train.py", "--help")
        seconds.append(time.perf_counter() - started)
    print(f"\njobs/train.py --help: {statistics.median(seconds):.2f} s, median of 5")


def _python(*arguments: str) -> str:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _epoch_rates(run: Path) -> list[float]:
    """images/s of each epoch after the first."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["images_per_s"] for line in lines if line["kind"] == "epoch"][1:]

"""What the machinery costs: the bare step on tensors in memory, the real loop, the real loop through Ray.

    make bench                                  all benchmarks
    .venv/bin/python -m pytest -m '' -s tests/bench/bench_machinery.py

A U-Net of 16 filters at 96x128, batch 16, from the second epoch on. The three take turns, each in processes of its
own; the table gives the median of their epochs. Ratios count, not the absolute rates of this machine.
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
PICTURES, EPOCHS, TURNS = 200, 4, 2
RECIPE = [
    "data.height=96",
    "data.width=128",
    "model.filters=16",
    "train.global_batch_size=16",
    f"train.epochs={EPOCHS}",
    f"evaluation.every_epochs={EPOCHS}",
    "evaluation.panels=0",
]
BARE = """
import sys, time
import numpy as np, tensorflow as tf
from segtrain.config import Recipe, override
from segtrain.losses import loss_per_image
from segtrain.models import build_model
from segtrain.optimizers import build_optimizer

recipe = override(Recipe(), sys.argv[2:])
model, optimizer = build_model(recipe.model), build_optimizer(recipe.optimizer)
optimizer.build(model.trainable_variables)
random = np.random.default_rng(0)
images = tf.constant(random.random((16, 96, 128, 3), np.float32))
masks = tf.constant((random.random((16, 96, 128, 1)) > 0.5).astype(np.float32))

@tf.function
def step():
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(loss_per_image(recipe.loss, masks, model(images, training=True)))
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    return loss

step()
for _ in range(int(sys.argv[1])):
    started = time.perf_counter()
    for _ in range(10):
        float(step())
    print(160 / (time.perf_counter() - started))
"""
LOOP = """
import sys
from segtrain.config import Recipe, override
from segtrain.training.loop import train
from segtrain.training.world import World

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


def test_the_loop_and_ray_beside_the_bare_step(data_set: Path) -> None:
    rates: dict[str, list[float]] = {"bare step": [], "loop": [], "loop through Ray": []}
    for turn in range(TURNS):
        rates["bare step"] += [float(line) for line in _python("-c", BARE, str(EPOCHS), *RECIPE).splitlines()[1:]]
        common = [f"data.root={data_set / 'data'}", f"run.storage={data_set / 'runs'}", *RECIPE]
        _python("-c", LOOP, f"run.name=loop-{turn}", *common)
        rates["loop"] += _epoch_rates(data_set / "runs" / f"loop-{turn}")
        recipe = data_set / "empty.yaml"
        recipe.write_text("")
        _python("jobs/train.py", str(recipe), f"run.name=ray-{turn}", *common)
        rates["loop through Ray"] += _epoch_rates(data_set / "runs" / f"ray-{turn}")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"\n{'':20}  images/s  of the bare step   (epochs)")
    for name, values in rates.items():
        spread = " ".join(f"{value:.1f}" for value in values)
        print(f"{name:20}  {medians[name]:8.2f}  {medians[name] / medians['bare step']:16.3f}   ({spread})")
    print(f"through Ray, of the same loop without Ray: {medians['loop through Ray'] / medians['loop']:.3f}")


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

"""The real training loop on drawn ellipses in a folder; `tests.bench.gpu loop`. Needs pyarrow and Pillow, not Ray."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from segtrain.config import Recipe, override
from segtrain.runs.status import Account, Driver, Progress, World
from tests.bench.gpu_bench import Results

FOLDS = 5
UTILIZATION_EVERY_S = 0.5


def loop(
    results: Results, size: tuple[int, int, int], settings: list[str], *, pictures: int, epochs: int, gpus: int
) -> None:
    """Train some epochs of a set that is prepared anew: pictures/s, waiting for input, utilization, start."""
    from segtrain.prepare.prepare_set import prepare
    from segtrain.training.loop import train

    height, width, batch = size
    with TemporaryDirectory(prefix="segtrain-loop-") as folder:
        _draw(Path(folder) / "raw", pictures, height, width)
        source = [f"source.path={folder}/raw", f"prepare.folds={FOLDS}", f"data.root={folder}/data"]
        shape = [f"data.height={height}", f"data.width={width}", f"train.global_batch_size={batch}"]
        run = [f"run.storage={folder}/runs", "run.name=loop", f"train.epochs={epochs}"]
        recipe = override(Recipe(), [*source, *shape, *run, *settings])
        prepare(recipe, f"{folder}/data", parallel=False)
        told: list[Progress] = []
        began_at = time.perf_counter()
        with _utilization(gpus) as readings:
            summary = train(recipe, World(replicas_per_worker=max(1, gpus), gpus_per_worker=gpus), Driver(told.append))
        seconds = time.perf_counter() - began_at
    account = next((one.account for one in reversed(told) if one.account is not None), Account())
    utilization = float(np.mean(readings)) if readings else None
    results.add(
        _line(summary.images_per_s, account, utilization, seconds),
        ok=summary.images_per_s > 0,
        size=size,
        settings=settings,
        pictures=pictures,
        epochs=epochs,
        images_per_s=summary.images_per_s,
        input_wait_s=account.input_wait_s,
        steps_s=account.steps_s,
        first_step_s=account.starting_s,
        evaluation_s=account.evaluation_s,
        checkpoint_s=account.checkpoint_s,
        gpu_utilization_percent=utilization,
        seconds=seconds,
    )


def _line(images_per_s: float, account: Account, utilization: float | None, seconds: float) -> str:
    busy = "GPU utilization unknown (no GPU in use)" if utilization is None else f"GPU utilization {utilization:.0f} %"
    return (
        f"{images_per_s:.1f} pictures/s in the last epoch; of {seconds:.1f} s: first step after "
        f"{account.starting_s:.1f}, steps {account.steps_s:.1f}, waiting for input {account.input_wait_s:.2f}, scoring "
        f"{account.evaluation_s:.1f}, saving {account.checkpoint_s:.2f}; {busy}"
    )


def _draw(folder: Path, pictures: int, height: int, width: int) -> None:
    """Bright ellipses on dark noise, as JPEG, and their masks as PNG."""
    from PIL import Image

    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(pictures):
        y, x, tall, wide = random.uniform(0.3, 0.6, 4) * (height, width, height, width)
        rows, columns = np.ogrid[:height, :width]
        mask = (((rows - y) / tall) ** 2 + ((columns - x) / wide) ** 2 < 0.5).astype(np.uint8)
        noise = random.integers(0, 60, (height, width, 3)).astype(np.uint8)
        image = noise + mask[..., None] * np.uint8(180)
        Image.fromarray(image).save(folder / "images" / f"p{number:04d}.jpg", quality=85)
        Image.fromarray(mask * np.uint8(255)).save(folder / "masks" / f"p{number:04d}.png")


@contextmanager
def _utilization(gpus: int) -> Iterator[list[float]]:
    """Percent that nvidia-smi tells of the busiest GPU, twice a second while the block runs; empty without GPUs."""
    readings: list[float] = []
    done = threading.Event()

    def read() -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not done.wait(UTILIZATION_EVERY_S):
            answer = subprocess.run(query, capture_output=True, text=True, env=dict(os.environ), check=True).stdout
            readings.append(max(float(line) for line in answer.split()))

    if not gpus or shutil.which("nvidia-smi") is None:
        yield readings
        return
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield readings
    finally:
        done.set()
        reader.join()

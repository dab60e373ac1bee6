"""A tiny prepared data set of pictures that differ in size, recipes on it, and what a run leaves in its folder."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as framework

from segtrain.config import Recipe, override
from segtrain.dataset.manifest import MANIFEST_NAME
from segtrain.prepare.prepare_set import prepare
from segtrain.runs.status import Driver, Progress, RunSummary, World
from segtrain.training import clock
from segtrain.training.loop import train
from tests.support.small_sources import save_pair

PICTURES, FOLDS, HEIGHT, WIDTH = 24, 3, 16, 24


@dataclass(frozen=True)
class TinySet:
    """A data set of three folds of 8 pictures, two to a row group, and where it came from."""

    root: str
    masks: Path
    """Folder of the masks that were prepared, as PNG of {0, 255}."""

    def recipe(self, *settings: str) -> Recipe:
        """A recipe of 4 steps an epoch, the last of them on a single picture, with `settings` over it."""
        tiny = [
            f"data.root={self.root}",
            f"data.height={HEIGHT}",
            f"data.width={WIDTH}",
            "data.lanes=4",
            "data.shuffle_window_bytes=16777216",
            "data.decode_threads=1",
            "model.filters=4",
            "model.depth=1",
            "model.convolutions=1",
            "train.global_batch_size=5",
            "train.epochs=2",
            "evaluation.batch_size=3",
            "evaluation.panels=2",
        ]
        return override(Recipe(), [*tiny, *settings])


@dataclass(frozen=True)
class RunFolder:
    """What a run left behind."""

    path: Path

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The lines of one kind in `metrics.jsonl`."""
        lines = map(json.loads, (self.path / "metrics.jsonl").read_text().splitlines())
        return [{key: value for key, value in line.items() if key != "kind"} for line in lines if line["kind"] == kind]

    def checkpoints(self) -> list[int]:
        """Steps of the finished checkpoints."""
        return sorted(int(path.parent.name[5:]) for path in self.path.glob("checkpoints/step-*/checksums.json"))

    def arrays(self, step: int | None = None) -> dict[str, np.ndarray]:
        """All variables of a checkpoint, the last one where no step is given."""
        number = self.checkpoints()[-1] if step is None else step
        with np.load(io.BytesIO((self.path / f"checkpoints/step-{number:08d}/arrays.npz").read_bytes())) as stored:
            return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    """Noise with a greener box for a mask, 20 to 26 pixels high and 30 to 34 wide; two pictures a group."""
    folder = tmp_path_factory.mktemp("tiny")
    for number in range(PICTURES):
        random = np.random.default_rng(number)
        mask = np.zeros((20 + number % 7, 30 + number % 5), np.uint8)
        mask[number % 8 : number % 8 + 9, number * 5 % 14 : number * 5 % 14 + 12] = 255
        pixels = random.integers(0, 120, (*mask.shape, 3), np.uint8)
        pixels[..., 1] += mask // 2
        save_pair(folder / "raw", f"g{number // 2:02d}_{number % 2}", pixels, mask)
    settings = [f"source.path={folder / 'raw'}", "source.group_regex=^(g[0-9]+)_", f"prepare.folds={FOLDS}"]
    recipe = override(Recipe(), [*settings, "prepare.min_row_groups=12"])
    manifest = prepare(recipe, str(folder / "data"), parallel=False)
    # The order of samples follows from the fingerprint, and that from the bytes of PNG and masks, which another zlib
    # packs otherwise; the golden losses must not depend on it.
    manifest = manifest.model_copy(update={"fingerprint": "feedfacefeedface"})
    (folder / "data" / MANIFEST_NAME).write_text(manifest.model_dump_json())
    assert [facts.pictures for facts in manifest.folds] == [8, 8, 8]
    return TinySet(str(folder / "data"), folder / "raw" / "masks")


@pytest.fixture
def recipe(tiny_set: TinySet, tmp_path: Path) -> Callable[..., Recipe]:
    """`TinySet.recipe` for a run in a folder of the test."""
    return lambda *settings: tiny_set.recipe(f"run.storage={tmp_path}", *settings)


@dataclass(frozen=True)
class FinishedRun(RunFolder):
    """A run that nothing disturbed."""

    recipe: Recipe
    summary: RunSummary
    told: list[Progress]


@pytest.fixture(scope="session")
def finished(tiny_set: TinySet, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Two epochs with everything that a resumed run must take up again; deterministic to the last bit."""
    recipe = tiny_set.recipe(
        f"run.storage={tmp_path_factory.mktemp('runs')}",
        "run.name=finished",
        "augment.rotate_degrees=10.0",
        "augment.brightness=0.1",
        "model.dropout=0.2",
        "schedule.kind=cosine",
        "schedule.warmup_epochs=1.0",
        "train.ema_momentum=0.5",
        "train.deterministic=true",
        "checkpoint.every_steps=2",
        "checkpoint.keep=2",
    )
    told: list[Progress] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "TELL_EVERY_S", 0.0)
        summary = train(recipe, World(), Driver(told.append))
    return FinishedRun(Path(recipe.run.folder), recipe, summary, told)


@pytest.fixture(scope="session")
def run_folder() -> Callable[[str | Path], RunFolder]:
    """`RunFolder`, for tests to read what a run left."""
    return lambda path: RunFolder(Path(path))


@pytest.fixture(scope="session")
def strategy() -> tf.distribute.Strategy:
    """One replica on the CPU."""
    return tf.distribute.MirroredStrategy(["CPU:0"])


@pytest.fixture(autouse=True, scope="module")
def _determinism_ends_with_the_module() -> Iterator[None]:
    """TensorFlow keeps it for the process, and runs ops without a seed only where it is off."""
    yield
    framework.disable_op_determinism()

"""A network and its step on one device, and where results of such measurements go. Needs neither Ray nor pyarrow."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.config import Recipe, override


class Bench:
    """A network and its step on one device, with a batch of bright ellipses on dark noise."""

    def __init__(self, device: str, settings: Sequence[str], size: tuple[int, int, int]) -> None:
        import tensorflow as tf

        from segtrain.models import build_model
        from segtrain.training.optimizers import build_optimizer
        from segtrain.training.step import TrainStep

        self.height, self.width, self.pictures = size
        shape = [f"data.height={self.height}", f"data.width={self.width}", f"train.global_batch_size={self.pictures}"]
        self.recipe = override(Recipe(), [*shape, "augment.flip=0.0", *settings])
        self.strategy = tf.distribute.MirroredStrategy([device])
        with self.strategy.scope():
            self.model = build_model(self.recipe.model, dtype_policy=self.recipe.train.precision, seed=7)
            self.step = TrainStep(self.strategy, self.model, build_optimizer(self.recipe.optimizer), self.recipe)

    def start(self, batch: Any, number: int) -> Any:
        """Start a step of a batch without padding; returns its vector of results, on the device."""
        return self.step(batch, number, self.recipe.optimizer.learning_rate, whole=True)

    def result(self, batch: Any, number: int) -> Any:
        """Take a step and wait for its results."""
        from segtrain.training.step import read_results

        return read_results([self.start(batch, number)])[0]

    def batch(self, *, damaged: bool = False) -> Any:
        """On the device. `damaged` plants an infinity in its last picture."""
        from segtrain.pipeline.augment import draw_augmentation
        from segtrain.pipeline.batches import ReplicaBatch

        random = np.random.default_rng(0)
        images: Any = random.integers(0, 60, (self.pictures, self.height, self.width, 3), np.uint8)
        masks = np.stack([self._ellipse(random) for _ in range(self.pictures)])
        images += masks * np.uint8(180)
        if damaged:
            images = images.astype(np.float32)
            images[-1] = np.inf
        keys = np.arange(self.pictures, dtype=np.int64)
        draws = draw_augmentation(self.recipe.augment, 0, 0, keys, self.height, self.width)
        weights = np.ones(self.pictures, np.float32)
        return self.step.place([ReplicaBatch(images, masks, weights, keys, draws)])

    def _ellipse(self, random: np.random.Generator) -> np.ndarray:
        """A mask uint8 {0, 1} (H, W, 1)."""
        y, x, height, width = random.uniform(0.3, 0.6, 4) * (self.height, self.width, self.height, self.width)
        rows, columns = np.ogrid[: self.height, : self.width]
        inside = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 0.5
        return inside[..., None].astype(np.uint8)

    def weights(self) -> np.ndarray:
        values = [self.strategy.experimental_local_results(one.value)[0].numpy() for one in self.model.variables]
        return np.concatenate([value.ravel() for value in values])


class Results:
    """What was found, printed line by line and kept in one JSON file."""

    def __init__(self, what: str, out: str) -> None:
        self._path = Path(out) / f"gpu-{what}.json"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._tree: dict[str, Any] = {"what": what, "command": sys.argv, "results": []}
        self.failed = 0

    def facts(self, **facts: Any) -> None:
        self._tree.update(facts)
        print("  ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
        self._write()

    def add(self, line: str, *, ok: bool, **values: Any) -> None:
        self.failed += not ok
        self._tree["results"].append({**values, "ok": ok})
        print(line if ok else f"{line}  FAILED", flush=True)
        self._write()

    def print_json(self) -> None:
        """All of it on one line, which a log keeps where the file is lost."""
        print(json.dumps(self._tree, default=str), flush=True)

    def _write(self) -> None:
        self._path.write_text(json.dumps(self._tree, indent=1, default=str))


LOGICAL_GPU_MIB = 16384
"""Of each logical GPU, where one card stands in for two."""


def devices() -> tuple[list[Any], str]:
    """The GPUs that TensorFlow sees, which take no more memory than they need, and the device to compute on."""
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # every cell is a function of its own, which it would warn of
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return gpus, "GPU:0" if gpus else "CPU:0"


def two_devices() -> list[str]:
    """Two GPUs, one divided into two logical ones where there is no second, or two logical CPU devices."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) == 1:
        part = tf.config.LogicalDeviceConfiguration(memory_limit=LOGICAL_GPU_MIB)
        tf.config.set_logical_device_configuration(gpus[0], [part] * 2)
    elif not gpus:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    else:
        devices()
    kind = "GPU" if gpus else "CPU"
    return [f"{kind}:0", f"{kind}:1"]


def words_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

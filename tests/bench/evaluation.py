"""What an evaluation costs the host beside its forward calls, for a 1918x1280 picture scored at its own resolution.

    python -m tests.bench.evaluation [--height 96] [--width 128] [--pictures 16] [--repeats 5]

`EvaluationData` and `score_fold` as a run has them, on one drawn car; the device's part is logits and sums that were
made beforehand, so that the CPU time of the process is all that is left. TensorFlow has one thread, so that the time of
a part is the time of its thread. One line of JSON: CPU milliseconds a picture of the first evaluation and of the
second, the least of the repeats, in all and in decoding (reading included), upscaling and counting.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from unittest import mock

BATCH = 4
PARTS = ("total", "decode", "upscale", "count")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), options.height, options.width, options.pictures, options.repeats)
    print(json.dumps({"height": options.height, "width": options.width, **found}))


class Clock:
    """CPU seconds of the threads that run the functions it has been put around, by the part they belong to."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS[1:], 0.0)
        self._adding = threading.Lock()

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                with self._adding:
                    self.seconds[part] += time.thread_time() - began

        return timed


def measured(folder: Path, height: int, width: int, pictures: int, repeats: int) -> dict[str, dict[str, float]]:
    """By evaluation (`first`, `second`), milliseconds a picture of each part."""
    from segtrain.process import before_tensorflow

    before_tensorflow(compute_threads=1)
    import tensorflow as tf

    from segtrain.config import Recipe
    from segtrain.dataset.data_set import read_data_set
    from segtrain.dataset.reader import RowGroupReader
    from segtrain.pipeline import worker_data
    from segtrain.runs.status import World
    from segtrain.storage.files import Storage
    from segtrain.training import evaluation
    from segtrain.training.strategy import build_strategy
    from tests.bench.pairs import make_pairs

    root = make_pairs(folder, pictures, 8).root
    recipe = Recipe.from_dict(
        {"data": {"root": root, "height": height, "width": width}, "evaluation": {"batch_size": BATCH}}
    )
    strategy, data_set, clock = build_strategy(World()), read_data_set(Storage(), recipe.data), Clock()
    logits = tf.constant(_made_logits(height, width))
    sums = tf.zeros((BATCH, 3), tf.float64)

    def forward(batch: Any) -> Any:
        return evaluation.Forwarded(logits, sums)

    parts = (
        ("decode", worker_data, "decode_picture"),
        ("decode", worker_data, "mask_bits"),
        ("upscale", evaluation, "upsample_probability"),
        ("count", evaluation, "count_picture"),
    )
    least = {name: dict.fromkeys(PARTS, float("inf")) for name in ("first", "second")}
    with ExitStack() as patched:
        for part, module, name in parts:
            patched.enter_context(mock.patch.object(module, name, clock.around(part, getattr(module, name))))
        read = clock.around("decode", RowGroupReader.read)
        patched.enter_context(mock.patch.object(RowGroupReader, "read", read))
        for _ in range(repeats):
            with closing(worker_data.EvaluationData(recipe, data_set, Storage(), World())) as data:
                for name in least:
                    taken = dict(_taken(clock, lambda: evaluation.score_fold(forward, strategy, data, threshold=0.5)))
                    for part, seconds in taken.items():
                        least[name][part] = min(least[name][part], round(1e3 * seconds / len(data.ids), 2))
    return least


def _taken(clock: Clock, evaluate: Callable[[], Any]) -> Iterator[tuple[str, float]]:
    before, began = dict(clock.seconds), time.process_time()
    evaluate()
    yield "total", time.process_time() - began
    yield from ((part, clock.seconds[part] - before[part]) for part in before)


def _made_logits(height: int, width: int) -> Any:
    """Float32 (B, height, width, 1): a disc whose edge is a few pixels wide, and noise."""
    import numpy as np

    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    disc = 20.0 * (0.6 - np.hypot(rows, columns))
    noise = np.random.default_rng(0).normal(0.0, 0.3, (BATCH, height, width))
    return (disc + noise).astype(np.float32)[..., None]


if __name__ == "__main__":
    main()

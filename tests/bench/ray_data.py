"""Ray Data over the pairs as plain Parquet: `read_parquet`, decode in `map_batches`, `iter_batches`.

    python -m tests.bench.ray_data FOLDER HEIGHT WIDTH PAIRS BATCH

An embedded Ray of its own with every core, Ray Data's defaults, uint8 batches as the other readers give them. It prints
`[pairs, seconds]` of a whole second pass over the folder's PAIRS pairs. The first pass starts the workers and imports
TensorFlow into them. A part of a pass would not do: blocks that are decoded while the first one is waited for come in
a burst.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from functools import partial

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from tests.bench.measuring import Batch, consume, from_start


def decode(batch: dict[str, NDArray[np.object_]], height: int, width: int) -> dict[str, NDArray[np.uint8]]:
    """JPEGs and packed masks to uint8 (B, H, W, 3) and (B, H, W, 1); TensorFlow's decoder is faster than Pillow's."""
    import tensorflow as tf

    images = np.stack([np.asarray(tf.io.decode_jpeg(data, channels=3)) for data in batch["image"]])
    packed = [np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, -1) for data in batch["mask"]]
    masks = np.stack([np.unpackbits(each, axis=1, count=width)[..., None] for each in packed])
    return {"image": images, "mask": masks}


def batches(folder: str, height: int, width: int, batch: int) -> Iterator[Batch]:
    read = ray.data.read_parquet(folder)
    # So that a task decodes no more than a batch: without a size it takes a whole block, and the rate halves.
    decoded = read.map_batches(partial(decode, height=height, width=width), batch_size=batch)
    for columns in decoded.iter_batches(batch_size=batch):
        yield Batch(len(columns["image"]), (columns["image"], columns["mask"]))


def main() -> None:
    folder, (height, width, pairs, batch) = sys.argv[1], map(int, sys.argv[2:])
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    sessions = tempfile.mkdtemp(prefix="sr")  # a socket's path has at most 107 bytes
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=sessions,
    )
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        consume(batches(folder, height, width, batch), pairs)
        measured = from_start(lambda: batches(folder, height, width, batch), pairs)
    finally:
        ray.shutdown()
        shutil.rmtree(sessions, ignore_errors=True)
    print(json.dumps([measured.pairs, measured.seconds]))


if __name__ == "__main__":
    main()

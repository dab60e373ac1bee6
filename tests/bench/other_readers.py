"""What segtrain is measured beside: the decoder alone, the article's pipeline, and tf.data over TFRecord.

Each is an iterator without end over the pairs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from segtrain.dataset.shards import Row
from tests.bench.measuring import Batch
from tests.bench.pairs import HEIGHT, WIDTH

ROW_BYTES = (WIDTH + 7) // 8
BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
SMALL = (96, 128)
ARTICLE_BATCH = 32


def decode(image: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A stored pair at full resolution: uint8 (H, W, 3) and uint8 {0, 1} (H, W, 1).

    A table of the 256 bytes unpacks a mask in half the time of shifts and ands.
    """
    packed = tf.io.decode_raw(tf.io.decode_compressed(mask, "ZLIB"), tf.uint8)
    bits = tf.gather(tf.constant(BITS_OF_BYTE), tf.cast(packed, tf.int32))
    unpacked = tf.reshape(bits, (HEIGHT, ROW_BYTES * 8))[:, :WIDTH, None]
    pixels = tf.ensure_shape(tf.io.decode_jpeg(image, channels=3), (HEIGHT, WIDTH, 3))
    return pixels, unpacked


def limit(rows: Sequence[Row]) -> Iterator[Batch]:
    """Nothing but `decode`, in a parallel map over bytes that are in memory."""
    stored = tf.data.Dataset.from_tensor_slices(([row.image for row in rows], [row.mask for row in rows]))
    return _batches(stored.repeat().map(decode, num_parallel_calls=tf.data.AUTOTUNE))


def article(images: Sequence[str], masks: Sequence[str], *, parallel: bool) -> Iterator[Batch]:
    """The article's pipeline: a file each, `map`, batch, prefetch.

    Without `parallel` one call of `map` comes after the other, as the article's code says. TensorFlow 2.21 left alone
    would rewrite it into the parallel map (`map_parallelization`) and run both at the same rate.
    """
    files = tf.data.Dataset.from_tensor_slices((list(images), list(masks)))
    loaded = files.repeat().map(_load_files, num_parallel_calls=tf.data.AUTOTUNE if parallel else None)
    options = tf.data.Options()
    options.experimental_optimization.map_parallelization = parallel
    return _batches(loaded.batch(ARTICLE_BATCH).prefetch(tf.data.AUTOTUNE).with_options(options))


def _load_files(image: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """float32 (96, 128, 3) and (96, 128, 1) in [0, 1]; a GIF is decoded to RGB, and its first frame is the mask."""
    pixels = tf.io.decode_jpeg(tf.io.read_file(image), channels=3)
    frames = tf.ensure_shape(tf.io.decode_image(tf.io.read_file(mask), dtype=tf.float32), (1, None, None, 3))
    small = tf.image.resize(pixels, SMALL, method="nearest")
    return tf.cast(small, tf.float32) / 255.0, tf.image.resize(frames[0], SMALL, method="nearest")[..., :1]


def tfrecord(path: Path, batch: int) -> Iterator[Batch]:
    """One TFRecord file, parsed and decoded in a parallel map, batched."""
    features = {name: tf.io.FixedLenFeature((), tf.string) for name in ("image", "mask")}

    def load(example: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        parsed = tf.io.parse_single_example(example, features)
        return decode(parsed["image"], parsed["mask"])

    records = tf.data.TFRecordDataset(str(path)).repeat()
    return _batches(
        records.map(load, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def _batches(data: Any) -> Iterator[Batch]:
    batched = len(data.element_spec[0].shape) == 4
    for images, masks in data:
        yield Batch(len(images) if batched else 1, (images, masks))

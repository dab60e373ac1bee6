"""Exact scores on a fold: every picture once, at its original size, over any number of workers."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from segtrain.config.batch_split import FORWARDED_BATCHES
from segtrain.dataset.shards import Row
from segtrain.models.probability import upsample_probability
from segtrain.pipeline.augment import to_float
from segtrain.pipeline.batches import EvaluationBatch, PictureBatch
from segtrain.pipeline.prefetch import started_ahead
from segtrain.pipeline.worker_data import EvaluationData
from segtrain.score_table import COLUMNS, Scores, count_picture
from segtrain.training.strategy import place, sum_over_workers

VALIDATION_SCORES = ("dice_hard_original", "dice_soft", "dice_soft_training", "iou_hard_original")
"""Means that a run records of each evaluation (`segtrain.score_table.MEASURES`)."""


def score_fold(
    forward: Callable[[Any], Any],
    strategy: tf.distribute.Strategy,
    data: EvaluationData,
    *,
    threshold: float,
    watch: Callable[[Row, np.ndarray], None] = lambda row, probability: None,
    after_batch: Callable[[], None] = lambda: None,
) -> Scores:
    """Score this worker's pictures and add up with the other workers'; all get the same `Scores`.

    `forward` maps a per-replica `PictureBatch` to per-replica `Forwarded`. `watch` sees each of this worker's pictures
    with its probabilities (height, width) at original size. `after_batch` is called the same number of times in every
    worker; what it raises ends the evaluation.
    """
    table = np.zeros((len(data.ids), COLUMNS))
    threads = data.host_threads

    def forwarded() -> Iterator[tuple[EvaluationBatch, Any]]:
        """Each batch with its `Forwarded`, which the device may still be computing."""
        return ((batch, forward(place(strategy, batch.replicas))) for batch in data.batches())

    def scored() -> Iterator[tuple[int, Future[np.ndarray]]]:
        """Each picture's number, and its row of the table under way."""
        # The device has its next batch before the host waits for this one.
        for batch, on_device in started_ahead(forwarded(), FORWARDED_BATCHES):
            # `np.asarray` shares a tensor's memory on the host, where `numpy()` copies it.
            logits, sums = (
                [slot for part in strategy.experimental_local_results(each) for slot in np.asarray(part)]
                for each in on_device
            )
            for slot, scene in enumerate(batch.pictures):
                pixels = logits[slot][: scene.height, : scene.width]
                yield (
                    scene.number,
                    pool.submit(_score, scene.row, batch.truths[slot], pixels, sums[slot], threshold, watch),
                )
            after_batch()

    with ThreadPoolExecutor(threads, thread_name_prefix="score") as pool:
        # A GPU is faster than the scoring; without a bound the logits of the whole fold would wait in memory.
        for number, row in started_ahead(scored(), 2 * threads - FORWARDED_BATCHES):
            table[number] += row.result()
    return Scores(data.ids, sum_over_workers(strategy, table))


def _score(
    row: Row,
    bits: np.ndarray,
    logits: np.ndarray,
    soft_at_training_size: np.ndarray,
    threshold: float,
    watch: Callable[[Row, np.ndarray], None],
) -> np.ndarray:
    probability = upsample_probability(logits, row.height, row.width)
    watch(row, probability)
    truth = np.unpackbits(bits, axis=1, count=row.width)
    return count_picture(truth, probability, threshold, at_training_size=soft_at_training_size, curve=True)


class Forwarded(NamedTuple):
    """What a device makes of a `PictureBatch`."""

    logits: Any
    """(S, H, W, 1)."""
    soft_sums: Any
    """float64 (S, 3): `segtrain.metrics.soft_sums` of each slot's picture at training size."""


def with_soft_sums(logits: tf.Tensor, batch: PictureBatch) -> Forwarded:
    """The logits (S, H, W, 1) of a replica's batch, and the sums that its device counts: 3 ms a picture for a core.

    Rows are summed before columns, because TensorFlow sums a batch of one picture in another order if it may.
    """
    _, height, width, _ = batch.masks.shape
    rows = tf.range(height, dtype=tf.int64) < batch.sizes[:, :1]
    columns = tf.range(width, dtype=tf.int64) < batch.sizes[:, 1:]
    is_picture = rows[:, :, None] & columns[:, None, :]
    truth = tf.where(is_picture, tf.cast(batch.masks[..., 0], tf.float64), 0.0)
    probability = tf.where(is_picture, tf.sigmoid(tf.cast(logits[..., 0], tf.float64)), 0.0)
    sums = [tf.reduce_sum(tf.reduce_sum(each, 2), 1) for each in (probability * truth, probability, truth)]
    return Forwarded(logits, tf.stack(sums, axis=1))


def compiled_forward(strategy: tf.distribute.Strategy, model: keras.Model) -> Callable[[Any], Any]:
    """`forward(per-replica PictureBatch) -> per-replica Forwarded`: no dropout, and the moving statistics."""

    def on_replica(batch: PictureBatch) -> Forwarded:
        return with_soft_sums(model(to_float(batch.images), training=False), batch)

    @tf.function
    def forward(batch: Any) -> Any:
        return strategy.run(on_replica, args=(batch,))

    compiled: Callable[[Any], Any] = forward
    return compiled


def evenly_spread(ids: Sequence[str], count: int) -> set[str]:
    """`count` ids, evenly spread over the sequence: the same pictures at every evaluation."""
    return {ids[round(index)] for index in np.linspace(0, len(ids) - 1, min(count, len(ids)))}

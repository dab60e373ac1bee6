"""Exact scores: each picture once, at its own size, whatever the batches; scikit-learn agrees."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score

from segtrain.dataset.data_set import read_data_set
from segtrain.dataset.shards import Row
from segtrain.metrics import THRESHOLDS, soft_sums
from segtrain.models import build_model
from segtrain.pipeline.augment import to_float
from segtrain.pipeline.batches import EvaluationBatch, PictureBatch
from segtrain.pipeline.worker_data import EvaluationData
from segtrain.runs.status import World
from segtrain.score_table import COLUMNS, SEEN
from segtrain.storage.files import Storage
from segtrain.training.evaluation import (
    VALIDATION_SCORES,
    Forwarded,
    compiled_forward,
    evenly_spread,
    score_fold,
    with_soft_sums,
)
from segtrain.training.strategy import sum_over_workers

Forward = Callable[[Any], Any]
THRESHOLD = 0.4


@pytest.fixture
def forward(strategy: tf.distribute.Strategy) -> Forward:
    """Logits that follow the green channel, which the boxes brighten."""

    def on_replica(part: Any) -> Forwarded:
        return with_soft_sums(12.0 * (to_float(part.images)[..., 1:2] - 0.45), part)

    return lambda batch: strategy.run(on_replica, args=(batch,))


@pytest.fixture
def data(tiny_set) -> Iterator[Callable[..., EvaluationData]]:
    """Opens the evaluation data of fold 1, and closes it after the test."""
    opened = []

    def open_data(batch_size: int = 3) -> EvaluationData:
        recipe = tiny_set.recipe(f"evaluation.batch_size={batch_size}", "data.fold=1")
        data_set = read_data_set(Storage(), recipe.data)
        opened.append(EvaluationData(recipe, data_set, Storage(), World()))
        return opened[-1]

    yield open_data
    for each in opened:
        each.close()


def test_scores_are_those_of_scikit_learn_over_pictures_at_their_own_size(
    tiny_set, strategy: tf.distribute.Strategy, forward: Forward, data: Callable[..., EvaluationData]
) -> None:
    probabilities: dict[str, np.ndarray] = {}

    def keep(row: Row, probability: np.ndarray) -> None:
        probabilities[row.id] = probability

    scores = score_fold(forward, strategy, data(), threshold=THRESHOLD, watch=keep)
    truths = {
        name: np.asarray(Image.open(tiny_set.masks / f"{name}.png")).astype(bool) for name in sorted(probabilities)
    }
    assert sorted(scores.ids) == sorted(truths)
    assert len({truth.shape for truth in truths.values()}) > 4
    pairs = [(truths[name].ravel(), probabilities[name].ravel()) for name in scores.ids]
    hard = [f1_score(truth, probability >= THRESHOLD) for truth, probability in pairs]
    assert 0.2 < min(hard) < max(hard) < 1.0
    np.testing.assert_allclose(scores.per_picture("dice_hard_original"), hard, rtol=0, atol=1e-12)
    shares = [truths[name].mean() for name in scores.ids]
    np.testing.assert_allclose(scores.foreground(), shares, rtol=0, atol=1e-12)
    found = scores.summary(VALIDATION_SCORES)
    assert found["dice_hard_original"] == pytest.approx(np.mean(hard), abs=1e-12)
    overlap = np.mean([jaccard_score(truth, probability >= THRESHOLD) for truth, probability in pairs])
    assert found["iou_hard_original"] == pytest.approx(overlap, abs=1e-12)
    soft = np.mean([2 * p[t].sum(dtype=float) / (p.sum(dtype=float) + t.sum()) for t, p in pairs])
    assert found["dice_soft"] == pytest.approx(soft, abs=1e-12)
    for threshold, point in list(zip(THRESHOLDS, scores.threshold_curve(), strict=True))[7::40]:
        at_it = np.mean([f1_score(truth, probability >= threshold) for truth, probability in pairs])
        assert point == pytest.approx(at_it, abs=1e-12)
    everything = [np.concatenate(parts) for parts in zip(*pairs, strict=True)]
    assert found["dice_hard_original_set"] == pytest.approx(
        f1_score(everything[0], everything[1] >= THRESHOLD), abs=1e-12
    )


def test_dice_at_training_size_is_that_of_the_resized_pictures(
    strategy: tf.distribute.Strategy, forward: Forward, data: Callable[..., EvaluationData]
) -> None:
    wanted = []
    for batch in data().batches():
        probability = tf.sigmoid(tf.cast(forward(batch.replicas[0]).logits, tf.float64)).numpy()
        for p, t in list(zip(probability, batch.replicas[0].masks.numpy(), strict=True))[: len(batch.pictures)]:
            wanted.append(2 * (p * t).sum() / (p.sum() + t.sum()))
    assert len(wanted) == 8
    found = score_fold(forward, strategy, data(), threshold=THRESHOLD).summary(VALIDATION_SCORES)["dice_soft_training"]
    assert found == pytest.approx(np.mean(wanted), abs=1e-12)


@pytest.mark.parametrize("batch_size", [1, 5, 8, 50])
def test_any_batch_size_gives_the_same_scores_and_padding_never_counts(
    strategy: tf.distribute.Strategy, forward: Forward, data: Callable[..., EvaluationData], batch_size: int
) -> None:
    expected = score_fold(forward, strategy, data(3), threshold=THRESHOLD)
    found = score_fold(forward, strategy, data(batch_size), threshold=THRESHOLD)
    assert found.ids == expected.ids
    assert (found.table[:, SEEN] == 1).all()
    np.testing.assert_array_equal(found.table, expected.table)


class Altered:
    """Evaluation data whose batches a test has changed."""

    def __init__(self, data: EvaluationData, change: Callable[[list[EvaluationBatch]], list[EvaluationBatch]]) -> None:
        self.ids, self.host_threads = data.ids, data.host_threads
        self._data, self._change = data, change

    def batches(self) -> list[EvaluationBatch]:
        return self._change(list(self._data.batches()))


def test_a_picture_that_could_not_be_read_is_left_out_of_the_scores(
    strategy: tf.distribute.Strategy, forward: Forward, data: Callable[..., EvaluationData]
) -> None:
    whole = score_fold(forward, strategy, data(), threshold=THRESHOLD)
    found = score_fold(forward, strategy, Altered(data(), lambda batches: batches[1:]), threshold=THRESHOLD)
    assert found.ids == whole.ids[3:]
    np.testing.assert_array_equal(found.table, whole.table[3:])


def test_a_picture_that_comes_twice_is_noticed(
    strategy: tf.distribute.Strategy, forward: Forward, data: Callable[..., EvaluationData]
) -> None:
    def again(batches: list[EvaluationBatch]) -> list[EvaluationBatch]:
        scenes = batches[0].pictures
        pictures = [scenes[0], scenes[1]._replace(number=scenes[0].number)]
        return [dataclasses.replace(batches[0], pictures=pictures)]

    table = score_fold(forward, strategy, Altered(data(), lambda batches: batches[:1]), threshold=THRESHOLD)
    assert len(table.ids) == 3
    with pytest.raises(AssertionError, match="twice"):
        score_fold(forward, strategy, Altered(data(), again), threshold=THRESHOLD)


def test_no_more_pictures_wait_for_their_scores_than_threads_can_take(
    strategy: tf.distribute.Strategy, forward: Forward, data: Callable[..., EvaluationData]
) -> None:
    opened = data(1)
    opened.host_threads = 1
    passed, scored, waiting = [], [], []

    def noting(batch: Any) -> Any:
        waiting.append(len(passed) - len(scored))
        passed.append(batch)
        return forward(batch)

    score_fold(noting, strategy, opened, threshold=THRESHOLD, watch=lambda row, _: scored.append(row.id))
    assert len(passed) == len(scored) == 8
    assert max(waiting) <= 2


def test_the_device_has_the_next_batch_before_the_last_one_is_read(
    strategy: tf.distribute.Strategy, forward: Forward, data: Callable[..., EvaluationData]
) -> None:
    order = []

    def noting(batch: Any) -> Any:
        order.append("given")
        return forward(batch)

    score_fold(noting, strategy, data(2), threshold=THRESHOLD, after_batch=lambda: order.append("read"))
    assert order == ["given", "given", "read", "given", "read", "given", "read", "read"]


def test_what_the_watcher_raises_is_not_swallowed(
    strategy: tf.distribute.Strategy, forward: Forward, data: Callable[..., EvaluationData]
) -> None:
    def fail(row: Row, probability: np.ndarray) -> None:
        raise RuntimeError(f"cannot draw {row.id}")

    with pytest.raises(RuntimeError, match="cannot draw"):
        score_fold(forward, strategy, data(), threshold=THRESHOLD, watch=fail)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("score")]


def test_one_worker_alone_has_the_whole_sum(strategy: tf.distribute.Strategy) -> None:
    table = np.random.default_rng(0).random((5, COLUMNS))
    np.testing.assert_array_equal(sum_over_workers(strategy, table), table)


def test_forward_neither_drops_out_nor_moves_statistics(strategy: tf.distribute.Strategy, tiny_set) -> None:
    config = tiny_set.recipe("model.dropout=0.5").model
    with strategy.scope():
        model = build_model(config)
    before = [variable.numpy() for variable in model.variables]
    forward = compiled_forward(strategy, model)
    images = tf.constant(np.random.default_rng(1).integers(0, 256, (2, 16, 24, 3), np.uint8))
    part = PictureBatch(images, tf.zeros((2, 16, 24, 1), tf.uint8), tf.constant([[16, 24]] * 2, tf.int64))
    first, second = (strategy.experimental_local_results(forward(part).logits)[0].numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(
        first, keras.ops.convert_to_numpy(model(to_float(part.images), training=False)), atol=1e-5
    )
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_pixels_beside_a_picture_do_not_count_at_training_size() -> None:
    random = np.random.default_rng(2)
    logits = random.normal(size=(3, 5, 7, 1)).astype(np.float32)
    masks = random.integers(0, 2, (3, 5, 7, 1), np.uint8)
    logits[1, 4:] = np.nan
    sizes = [(5, 7), (4, 6), (0, 0)]
    batch = PictureBatch(tf.zeros((3, 5, 7, 3), tf.uint8), tf.constant(masks), tf.constant(sizes, tf.int64))
    found = with_soft_sums(tf.constant(logits), batch)
    np.testing.assert_array_equal(found.logits, logits)
    for slot, (rows, columns) in enumerate(sizes):
        truth, wide = (each[slot, :rows, :columns, 0].astype(np.float64) for each in (masks, logits))
        probability = 1 / (1 + np.exp(-wide))
        np.testing.assert_allclose(found.soft_sums[slot], soft_sums(truth, probability), rtol=1e-13)


@given(pictures=st.integers(0, 50), count=st.integers(0, 60))
def test_chosen_pictures_are_spread_from_the_first_to_the_last(pictures: int, count: int) -> None:
    ids = [f"p{number:02d}" for number in range(pictures)]
    chosen = evenly_spread(ids, count)
    assert len(chosen) == min(pictures, count)
    assert chosen <= set(ids)
    if len(chosen) > 1:
        places = [number for number, name in enumerate(ids) if name in chosen]
        assert (places[0], places[-1]) == (0, pictures - 1)
        gaps = np.diff(places)
        assert gaps.max() - gaps.min() <= 1

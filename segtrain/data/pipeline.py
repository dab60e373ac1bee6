"""Batches for the replicas of one worker: planned, read, decoded and augmented ahead of the step that needs them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from segtrain.config import DataConfig, Recipe
from segtrain.data.augment import augment, to_float
from segtrain.data.decode import decode_picture
from segtrain.data.loader import Loader
from segtrain.data.manifest import Manifest
from segtrain.data.plan import BatchSplit, EpochPlan, Sample, sample_key
from segtrain.data.prefetch import Prefetch
from segtrain.data.reader import RowGroupReader
from segtrain.data.selection import evaluation_selection, training_selection
from segtrain.data.shards import Row
from segtrain.storage import Storage

T = TypeVar("T")

# Batches that are ready for their step; decoding runs `data.prefetch_batches` ahead of these.
READY_BATCHES = 2


class ReplicaBatch(NamedTuple):
    """One replica's part of a step: S = accumulation * per_replica slots, on the CPU."""

    images: tf.Tensor
    """float32 (S, H, W, 3) in [0, 1]."""
    masks: tf.Tensor
    """float32 {0, 1} (S, H, W, 1)."""
    weights: tf.Tensor
    """float32 (S,): 1 for a sample, 0 for a slot that holds a repeated picture."""
    keys: tf.Tensor
    """int64 (S,): `sample_key` of each id; keys dropout and augmentation."""


@dataclass(frozen=True)
class StepBatch:
    """A worker's part of one global batch."""

    epoch: int
    step: int
    ids: list[str]
    """Of the samples, in slot order; slots of weight 0 are not named."""
    replicas: list[ReplicaBatch]


@dataclass(frozen=True)
class EvaluationBatch:
    """A worker's part of one step of evaluation: `evaluation.batch_size` slots on each replica."""

    replicas: list[ReplicaBatch]
    """As in training, but never augmented."""
    pictures: list[tuple[int, Row]]
    """(number in the evaluation set, row) of the pictures, in slot order; the slots after the last weigh 0."""


@dataclass(frozen=True, slots=True)
class _Picture:
    """A decoded sample."""

    id: str
    key: int
    pixels: NDArray[np.uint8]  # (H, W, 4): RGB and the mask


def _decode(row: Row, size: DataConfig) -> _Picture:
    return _Picture(row.id, sample_key(row.id), decode_picture(row, size.height, size.width))


def _decode_with_row(row: Row, size: DataConfig) -> tuple[Row, _Picture]:
    return row, _decode(row, size)


def _blank(size: DataConfig) -> _Picture:
    return _Picture("", 0, np.zeros((size.height, size.width, 4), np.uint8))


def _assemble(
    pictures: Sequence[_Picture],
    filler: _Picture,
    replicas: int,
    slots: int,
    change: Callable[[NDArray[np.uint8], NDArray[np.int64]], tuple[tf.Tensor, tf.Tensor]],
) -> list[ReplicaBatch]:
    """Lay pictures on replicas in order, `slots` each; `filler` with weight 0 takes the slots after the last.

    `change` turns pixels uint8 (B, H, W, 4) and keys (B,) into images (B, H, W, 3) and masks (B, H, W, 1).
    """
    filled = [*pictures, *[filler] * (replicas * slots - len(pictures))]
    keys = np.array([picture.key for picture in filled], np.int64)
    weights = (np.arange(len(filled)) < len(pictures)).astype(np.float32)
    with tf.device("/CPU:0"):
        images, masks = change(np.stack([picture.pixels for picture in filled]), keys)
        whole = ReplicaBatch(images, masks, tf.constant(weights), tf.constant(keys))
        return [ReplicaBatch(*(field[at : at + slots] for field in whole)) for at in range(0, len(filled), slots)]


def _failed(future: Future[_Picture]) -> bool:
    """Whether a picture is to be read once more: a fault of storage may have passed."""
    return future.done() and (future.cancelled() or future.exception() is not None)


def _root(recipe: Recipe) -> str:
    assert recipe.data.root is not None, "the manifest was read from data.root"
    return recipe.data.root


class _Feed(Generic[T]):
    """What training and evaluation share: the pools, and one iterator at a time. Close it, or use it in a `with`."""

    def __init__(self, recipe: Recipe, manifest: Manifest, storage: Storage) -> None:
        self._recipe = recipe
        self._loader = Loader(RowGroupReader(manifest, storage, _root(recipe)), recipe.data.decode_threads)
        self._stream: Prefetch[T] | None = None

    def _restart(self, source: Iterator[T], name: str) -> Prefetch[T]:
        if self._stream is not None:
            self._stream.close()
        self._stream = Prefetch(source, READY_BATCHES, name)
        return self._stream

    def close(self) -> None:
        """End the iterator and all threads."""
        self._loader.cancel()
        if self._stream is not None:
            self._stream.close()
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class TrainingData(_Feed[StepBatch]):
    """The training batches of one worker.

    With `data.cache: memory`, or `auto` where the decoded training set fits `data.cache_bytes`, decoded pictures are
    kept, so that a worker reads and decodes each of them once in the run.
    """

    def __init__(
        self,
        recipe: Recipe,
        manifest: Manifest,
        storage: Storage,
        *,
        worker: int,
        workers: int,
        replicas: int,
        split: BatchSplit,
    ) -> None:
        """Raises `UserError` where the data set lacks a fold that the recipe names, or has nothing to train on."""
        super().__init__(recipe, manifest, storage)
        self._fingerprint = manifest.fingerprint
        self._worker, self._workers, self._replicas, self._split = worker, workers, replicas, split
        data = recipe.data
        self._selection = training_selection(data, recipe.train.seed, manifest, storage, _root(recipe))
        self.samples_per_epoch = int(self._selection.table.rows.sum())
        self.steps_per_epoch = -(-self.samples_per_epoch // recipe.train.global_batch_size)
        decoded_bytes = self.samples_per_epoch * data.height * data.width * 4
        self._keep = data.cache == "memory" or (data.cache == "auto" and decoded_bytes <= data.cache_bytes)
        self._kept: dict[Sample, Future[_Picture]] = {}

    def batches(self, epoch: int, step: int) -> Prefetch[StepBatch]:
        """Steps without end, the first of them (epoch, step); the iterator before this one ends.

        `next` raises what reading and decoding raise: `DataError`, `StorageError`.
        """
        return self._restart(self._produce(epoch, step), "segtrain-training")

    def _produce(self, epoch: int, step: int) -> Iterator[StepBatch]:
        config, train, split = self._recipe.augment, self._recipe.train, self._split
        filler = _blank(self._recipe.data)
        started = self._started(epoch, step)
        ahead = deque(islice(started, self._recipe.data.prefetch_batches))
        while True:
            ahead.append(next(started))
            epoch, step, futures = ahead.popleft()
            pictures = [future.result() for future in futures]
            filler = pictures[-1] if pictures else filler
            change = partial(augment, config, train.seed, epoch)
            replicas = _assemble(pictures, filler, self._replicas, split.per_replica * split.accumulation, change)
            yield StepBatch(epoch, step, [picture.id for picture in pictures], replicas)

    def _started(self, epoch: int, step: int) -> Iterator[tuple[int, int, list[Future[_Picture]]]]:
        """The steps from (epoch, step) on, each with its pictures under way.

        A row group stays in memory until this worker has asked for the last of its samples in it in the epoch.
        """
        train, data = self._recipe.train, self._recipe.data
        while True:
            plan = EpochPlan(
                self._fingerprint,
                train.seed,
                epoch,
                self._selection.table,
                train.global_batch_size,
                data.lanes,
                data.shuffle_window_bytes,
            )
            left = plan.outstanding(step, self._worker, self._workers)
            reading: dict[int, Future[list[Row]]] = {}
            for number in range(step, plan.steps):
                samples = plan.worker_batch(number, self._worker, self._workers)
                yield epoch, number, [self._start(sample, reading) for sample in samples]
                for group, _ in samples:
                    left[group] -= 1
                    if left[group] == 0:
                        reading.pop(group, None)
            epoch, step = epoch + 1, 0

    def _start(self, sample: Sample, reading: dict[int, Future[list[Row]]]) -> Future[_Picture]:
        if sample in self._kept and not _failed(self._kept[sample]):
            return self._kept[sample]
        group, row = sample
        if group not in reading:
            reading[group] = self._loader.read(*self._selection.place(group))
        decode = partial(_decode, size=self._recipe.data)
        picture = self._loader.decode(decode, reading[group], self._selection.stored_row(group, row))
        if self._keep:
            self._kept[sample] = picture
        return picture


class EvaluationData(_Feed[EvaluationBatch]):
    """The labelled pictures of some folds, each exactly once over all workers; row groups go round robin to them.

    Every worker has the same number of batches, `steps`, so that none waits for another in a collective.
    """

    def __init__(
        self,
        recipe: Recipe,
        manifest: Manifest,
        storage: Storage,
        *,
        worker: int,
        workers: int,
        replicas: int,
        folds: Sequence[int] | None = None,
    ) -> None:
        """`folds` is `data.fold` where nothing is given. Raises `UserError` where they hold no labelled picture."""
        super().__init__(recipe, manifest, storage)
        folds = (recipe.data.fold,) if folds is None else folds
        self._replicas = replicas
        self._selection, self.ids = evaluation_selection(folds, manifest, storage, _root(recipe))
        rows = self._selection.table.rows
        self._first_numbers = np.cumsum(rows) - rows
        self._row_groups = range(worker, rows.size, workers)
        self.own_ids = [
            self.ids[self._first_numbers[group] + row] for group in self._row_groups for row in range(rows[group])
        ]
        """This worker's pictures, in the order in which they come."""
        slots = replicas * recipe.evaluation.batch_size
        self.steps = max(-(-int(rows[other::workers].sum()) // slots) for other in range(workers))

    def batches(self) -> Prefetch[EvaluationBatch]:
        """`steps` batches; the iterator before this one ends. `next` raises `DataError` and `StorageError`."""
        return self._restart(self._produce(), "segtrain-evaluation")

    def _produce(self) -> Iterator[EvaluationBatch]:
        slots = self._recipe.evaluation.batch_size
        filler = _blank(self._recipe.data)
        started = self._started()
        chunks = (list(islice(started, slots * self._replicas)) for _ in range(self.steps))
        ahead = deque(islice(chunks, self._recipe.data.prefetch_batches))
        while ahead:
            ahead.extend(islice(chunks, 1))
            decoded = [(number, *future.result()) for number, future in ahead.popleft()]
            pictures = [picture for _, _, picture in decoded]
            replicas = _assemble(pictures, filler, self._replicas, slots, lambda pixels, _: to_float(pixels))
            yield EvaluationBatch(replicas, [(number, row) for number, row, _ in decoded])

    def _started(self) -> Iterator[tuple[int, Future[tuple[Row, _Picture]]]]:
        """(number in the set, row and picture under way) of every picture of this worker."""
        decode = partial(_decode_with_row, size=self._recipe.data)
        for group in self._row_groups:
            rows = self._loader.read(*self._selection.place(group))
            for row in range(int(self._selection.table.rows[group])):
                stored = self._selection.stored_row(group, row)
                yield int(self._first_numbers[group]) + row, self._loader.decode(decode, rows, stored)

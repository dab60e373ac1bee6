"""Batches for the replicas of one worker: planned, read, decoded and laid out ahead of the step that needs them."""

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from segtrain.config import DataConfig, Recipe
from segtrain.config.batch_split import BatchSplit
from segtrain.dataset.data_set import DataSet
from segtrain.dataset.node_cache import NodeCache
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.shards import Row, mask_bits
from segtrain.errors import UserError
from segtrain.pipeline.augment import Draws, crop_corner, draw_augmentation
from segtrain.pipeline.batches import (
    DecodedPicture,
    EvaluationBatch,
    PictureBatch,
    ReplicaBatch,
    Scene,
    StepBatch,
    blank,
    stack,
)
from segtrain.pipeline.decode import decode_mask, decode_picture, decode_window
from segtrain.pipeline.plan import EpochPlan, Sample, sample_key
from segtrain.pipeline.prefetch import Prefetch, started_ahead
from segtrain.pipeline.read_ahead import Key, Outstanding, ReadAhead, default_limit_bytes
from segtrain.pipeline.sample_order import sample_order
from segtrain.pipeline.selection import Selection, evaluation_selection, training_selection
from segtrain.process import keep_freed_memory, share_of_cores
from segtrain.runs.status import World
from segtrain.storage.files import Storage, is_remote, local_path

T = TypeVar("T")

READ_THREADS = 8
"""Reading waits for storage rather than for a core: 8 requests of 8 MiB in flight hide 100 ms to the first byte."""
READY_BATCHES = 2
"""Batches laid out and ready for their step; decoding runs ahead of these."""


def _corner(
    data: DataConfig, seed: int, epoch: int, key: int, stored: tuple[int, int], mask: Callable[[], NDArray[np.uint8]]
) -> tuple[int, int]:
    return crop_corner(seed, epoch, key, stored, (data.height, data.width), boundary=data.boundary_crops, mask=mask)


def _decode_crop(row: Row, data: DataConfig, seed: int, epoch: int) -> DecodedPicture:
    stored = (row.height, row.width)
    corner = _corner(data, seed, epoch, sample_key(row.id), stored, lambda: decode_mask(row, *stored))
    return decode_window(row, *corner, data.height, data.width)


def _crop(whole: DecodedPicture, data: DataConfig, seed: int, epoch: int) -> DecodedPicture:
    height, width = whole.mask.shape
    top, left = _corner(data, seed, epoch, whole.key, (height, width), lambda: whole.mask)
    window = slice(top, top + data.height), slice(left, left + data.width)
    return replace(whole, image=whole.image[window], mask=whole.mask[window])


class _Labelled(NamedTuple):
    """A picture to be scored, as it was read and decoded."""

    row: Row
    bits: NDArray[np.uint8]
    """Of the mask at its own size."""
    picture: DecodedPicture


def _decode_labelled(row: Row, size: tuple[int, int] | None) -> _Labelled:
    picture = decode_picture(row, size)
    assert row.mask is not None, f"id {row.id} has no mask"
    return _Labelled(row, mask_bits(row.mask, row.height, row.width), picture)


def _decode_read(function: Callable[[Row], T], rows: Future[list[Row | None]], place: int) -> T | None:
    """`function` of one row of a row group, once that has been read; None for a row in quarantine."""
    found = rows.result()[place]
    return None if found is None else function(found)


def _is_usable(future: Future[DecodedPicture | None]) -> bool:
    """Whether a kept picture can be taken: a fault of storage may have passed, so what failed is read once more."""
    return not future.done() or not (future.cancelled() or future.exception() or future.result() is None)


def open_node_cache(data: DataConfig) -> NodeCache | None:
    """The cache of stored bytes on this node's disk, where the recipe asks for one."""
    remote = data.root is not None and is_remote(data.root)
    if not (data.cache == "disk" or (data.cache == "auto" and remote)) or not data.node_cache_bytes:
        return None
    folder = data.node_cache or f"{tempfile.gettempdir()}/segtrain-cache-{os.getuid()}"
    return NodeCache(local_path(folder), data.node_cache_bytes)


def batches_ahead(data: DataConfig, batch_bytes: int) -> tuple[int, int]:
    """(batches being decoded, batches ready): at least 1 each, within `data.prefetch_bytes` together if possible."""
    fit = max(2, data.prefetch_bytes // max(1, batch_bytes))
    ready = min(READY_BATCHES, fit - 1)
    return min(data.prefetch_batches, fit - ready), ready


class _Feed(Generic[T]):
    """What training and evaluation share: threads that read, threads that decode, and one iterator at a time.

    Decoding waits for reading and never the other way round. Close it in the end.
    """

    def __init__(self, recipe: Recipe, data_set: DataSet, storage: Storage, world: World, batch_bytes: int) -> None:
        keep_freed_memory()
        self._recipe = recipe
        self._world = world
        self._size = None if recipe.data.fit == "crop" else (recipe.data.height, recipe.data.width)
        self.reader = RowGroupReader(data_set.manifest, storage, data_set.root, open_node_cache(recipe.data))
        """Says what this worker has read since it started, and what it left out because its bytes are damaged."""
        self._reading = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="segtrain-read")
        self.host_threads = share_of_cores(world.workers_on_machine, recipe.cluster.cpus_per_worker)
        """Threads that keep this worker's share of its machine's cores busy."""
        self._decoding = ThreadPoolExecutor(
            recipe.data.decode_threads or self.host_threads, thread_name_prefix="segtrain-decode"
        )
        self._decoding_batches, self._ready_batches = batches_ahead(recipe.data, batch_bytes)
        self._stream: Prefetch[T] | None = None
        self._own_lanes = 0
        """Sample streams that this worker owns; evaluation has none."""

    def _restart(self, source: Iterator[T], name: str) -> Prefetch[T]:
        if self._stream is not None:
            self._stream.close()
        self._stream = Prefetch(source, self._ready_batches, name)
        return self._stream

    def _read_ahead(self, selection: Selection, reads: Iterator[Key], is_needed: Callable[[Key], bool]) -> ReadAhead:
        limit_bytes = self._recipe.data.read_ahead_bytes
        return ReadAhead(
            lambda group: self._reading.submit(self.reader.read, *selection.places[group]),
            lambda group: int(selection.table.bytes[group]),
            reads,
            is_needed,
            default_limit_bytes(selection.table, self._own_lanes) if limit_bytes is None else limit_bytes,
        )

    def close(self) -> None:
        """End the iterator and all threads; what has not been started is given up."""
        for pool in (self._reading, self._decoding):
            pool.shutdown(wait=False, cancel_futures=True)  # what waits for it gets `CancelledError`
        if self._stream is not None:
            self._stream.close()
        for pool in (self._reading, self._decoding):
            pool.shutdown()


class TrainingData(_Feed[StepBatch]):
    """The training batches of one worker.

    With `data.cache: memory`, or `auto` where the decoded training set fits `data.cache_bytes`, decoded pictures are
    kept, so that a worker reads and decodes each of them once in the run.
    """

    def __init__(self, recipe: Recipe, data_set: DataSet, storage: Storage, world: World, split: BatchSplit) -> None:
        """Raises `UserError` where the data set lacks a fold that the recipe names, or has nothing to train on."""
        data, manifest = recipe.data, data_set.manifest
        if data.fit == "crop" and (data.height > manifest.min_height or data.width > manifest.min_width):
            raise UserError(
                f"data.fit is crop, but the smallest pictures are {manifest.min_width} wide or {manifest.min_height} "
                f"high, less than data.width {data.width} or data.height {data.height}; make the crop smaller"
            )
        self._slots = split.per_replica * split.accumulation
        slots = world.replicas_per_worker * self._slots
        super().__init__(recipe, data_set, storage, world, slots * data.height * data.width * 4)
        self._selection = training_selection(data, recipe.train.seed, data_set)
        order = sample_order(recipe, manifest)
        self._own_lanes = -(-order.lanes // world.workers)
        self._plan = partial(
            EpochPlan,
            manifest.fingerprint,
            recipe.train.seed,
            table=self._selection.table,
            global_batch_size=recipe.train.global_batch_size,
            lanes=order.lanes,
            window_bytes=order.window_bytes,
        )
        """The plan of an epoch."""
        self.samples_per_epoch = int(self._selection.table.rows.sum())
        self.steps_per_epoch = -(-self.samples_per_epoch // recipe.train.global_batch_size)
        largest = (manifest.max_height, manifest.max_width) if data.fit == "crop" else (data.height, data.width)
        decoded_bytes = self.samples_per_epoch * largest[0] * largest[1] * 4
        self._keep = data.cache == "memory" or (data.cache == "auto" and decoded_bytes <= data.cache_bytes)
        self.kept_bytes = decoded_bytes if self._keep else 0
        """Most memory that decoded pictures will take which stay for the whole run."""
        self._kept: dict[Sample, Future[DecodedPicture | None]] = {}
        self._kept_rows = np.zeros(self._selection.table.rows.size, np.int64)

    def batches(self, epoch: int, step: int) -> Prefetch[StepBatch]:
        """Steps without end, the first of them (epoch, step); the iterator before this one ends.

        `next` raises what reading and decoding raise: `DataError`, `StorageError`.
        """
        return self._restart(self._produce(epoch, step), "segtrain-training")

    def _produce(self, epoch: int, step: int) -> Iterator[StepBatch]:
        data = self._recipe.data
        filler = blank(data.height, data.width)
        for number, at, futures in started_ahead(self._started(epoch, step), self._decoding_batches):
            pictures = [picture for picture in (future.result() for future in futures) if picture is not None]
            if self._keep and data.fit == "crop":
                pictures = [_crop(picture, data, self._recipe.train.seed, number) for picture in pictures]
            filler = pictures[-1] if pictures else filler
            ids = [picture.id for picture in pictures]
            is_whole = len(ids) == self._world.replicas_per_worker * self._slots
            yield StepBatch(number, at, ids, is_whole, self._lay_out(number, pictures, filler))

    def _lay_out(self, epoch: int, pictures: list[DecodedPicture], filler: DecodedPicture) -> list[ReplicaBatch]:
        """Pictures on the replicas in order; `filler` with weight 0 takes the slots after the last."""
        recipe, data = self._recipe, self._recipe.data
        filled = [*pictures, *[filler] * (self._world.replicas_per_worker * self._slots - len(pictures))]
        weights = (np.arange(len(filled)) < len(pictures)).astype(np.float32)
        keys = np.array([picture.key for picture in filled], np.int64)
        draws = draw_augmentation(recipe.augment, recipe.train.seed, epoch, keys, data.height, data.width)
        replicas = []
        for first in range(0, len(filled), self._slots):
            part = slice(first, first + self._slots)
            own = Draws(*(field[part] for field in draws))
            with tf.device("/CPU:0"):
                pixels = stack(filled[part], data.height, data.width)
            replicas.append(ReplicaBatch(*pixels, weights[part], keys[part], own))
        return replicas

    def _started(self, epoch: int, step: int) -> Iterator[tuple[int, int, list[Future[DecodedPicture | None]]]]:
        """The steps from (epoch, step) on, each with its pictures under way."""
        left = Outstanding(self._plan, epoch, step, self._world.rank, self._world.workers)
        rows = self._selection.table.rows
        reading = self._read_ahead(
            self._selection,
            left.reads(),
            lambda key: left.is_left(key) and bool(self._kept_rows[key[1]] < rows[key[1]]),
        )
        for number in count(epoch):
            # What is kept in memory by the end of this epoch need not be read for the next.
            last_epoch = number if self._keep else number + 1
            plan = left.plan(number)
            for at in range(step, plan.steps):
                reading.fill(last_epoch)
                samples = plan.worker_batch(at, self._world.rank, self._world.workers)
                yield number, at, [self._start(number, sample, reading) for sample in samples]
                for key in left.finish(number, samples):
                    reading.release(key)
            left.forget(number)
            step = 0

    def _start(self, epoch: int, sample: Sample, reading: ReadAhead) -> Future[DecodedPicture | None]:
        kept = self._kept.get(sample)
        if kept is not None and _is_usable(kept):
            return kept
        group, row = sample
        if self._recipe.data.fit == "crop" and not self._keep:
            decode = partial(_decode_crop, data=self._recipe.data, seed=self._recipe.train.seed, epoch=epoch)
        else:
            decode = partial(decode_picture, size=self._size)
        rows = reading.rows((epoch, group))
        picture = self._decoding.submit(_decode_read, decode, rows, self._selection.kept[group][row])
        if self._keep:
            self._kept_rows[group] += kept is None
            self._kept[sample] = picture
        return picture


class EvaluationData(_Feed[EvaluationBatch]):
    """The labelled pictures of some folds, each exactly once over all workers; row groups go round robin to them.

    Every worker has the same number of batches, `steps`, so that none waits for another in a collective. Where a run
    trains on crops it is scored on whole pictures, at their own resolution.

    The batches are the same ones each time. With `data.cache: auto` the first of them are kept, as many as fit, and
    with `memory` all: they are read, decoded and laid out once in the run.
    """

    def __init__(
        self,
        recipe: Recipe,
        data_set: DataSet,
        storage: Storage,
        world: World,
        folds: Sequence[int] | None = None,
        *,
        taken_bytes: int = 0,
    ) -> None:
        """`folds` is `data.fold` where nothing is given. `taken_bytes` of `data.cache_bytes` are others' already.

        Raises `UserError` where the folds hold no labelled picture.
        """
        data, manifest = recipe.data, data_set.manifest
        self._frame = (manifest.max_height, manifest.max_width) if data.fit == "crop" else (data.height, data.width)
        self._slots = world.replicas_per_worker * recipe.evaluation.batch_size
        super().__init__(recipe, data_set, storage, world, self._slots * self._frame[0] * self._frame[1] * 4)
        folds = (data.fold,) if folds is None else folds
        self._selection, self.ids = evaluation_selection(folds, data_set)
        rows = self._selection.table.rows
        firsts = np.cumsum(rows) - rows
        self._own = [
            (group, row) for group in range(world.rank, rows.size, world.workers) for row in range(rows[group])
        ]
        self._numbers = [int(firsts[group]) + row for group, row in self._own]
        self.own_ids = [self.ids[number] for number in self._numbers]
        """This worker's pictures, in the order in which they come."""
        self.steps = max(-(-int(rows[other :: world.workers].sum()) // self._slots) for other in range(world.workers))
        self._room_bytes = {"auto": max(0, data.cache_bytes - taken_bytes), "memory": math.inf}.get(data.cache, 0)
        self._kept: dict[int, EvaluationBatch] = {}

    def batches(self) -> Prefetch[EvaluationBatch]:
        """`steps` batches; the iterator before this one ends. `next` raises `DataError` and `StorageError`."""
        return self._restart(self._produce(), "segtrain-evaluation")

    def _produce(self) -> Iterator[EvaluationBatch]:
        slots = self._recipe.evaluation.batch_size
        filler = blank(*self._frame)
        for step, started in started_ahead(self._started(), self._decoding_batches):
            if step in self._kept:
                yield self._kept[step]
                continue
            results = [(number, future.result()) for number, future in started]
            decoded = [(number, *found) for number, found in results if found]
            scenes = [Scene(number, row, *picture.mask.shape) for number, row, _, picture in decoded]
            pictures = [picture for *_, picture in decoded]
            filler = pictures[-1] if pictures else filler
            filled = [*pictures, *[filler] * (self._slots - len(pictures))]
            sizes = np.zeros((self._slots, 2), np.int64)
            sizes[: len(scenes)] = [(scene.height, scene.width) for scene in scenes] or np.empty((0, 2))
            parts = [
                PictureBatch(*stack(filled[at : at + slots], *self._frame), sizes[at : at + slots])
                for at in range(0, len(filled), slots)
            ]
            batch = EvaluationBatch(parts, scenes, [bits for _, _, bits, _ in decoded])
            # A fault of storage may pass: what failed is read once more the next time.
            if len(decoded) == len(results) and batch.bytes <= self._room_bytes:
                self._room_bytes -= batch.bytes
                self._kept[step] = batch
            yield batch

    def _started(self) -> Iterator[tuple[int, list[tuple[int, Future[_Labelled | None]]]]]:
        """Of every step its number and, where it is not kept, its pictures under way, by their number in the set."""
        starts = [(step, step * self._slots) for step in range(self.steps)]
        missing = [sample for step, at in starts if step not in self._kept for sample in self._own[at:][: self._slots]]
        left = Counter(group for group, _ in missing)
        reading = self._read_ahead(self._selection, ((0, group) for group in left), lambda key: True)
        decode = partial(_decode_labelled, size=self._size)
        for step, at in starts:
            chunk = [] if step in self._kept else list(range(at, min(at + self._slots, len(self._own))))
            started = []
            for own in chunk:
                group, row = self._own[own]
                reading.fill(last_epoch=0)
                rows = reading.rows((0, group))
                place = self._selection.kept[group][row]
                started.append((self._numbers[own], self._decoding.submit(_decode_read, decode, rows, place)))
                left[group] -= 1
                if not left[group]:
                    reading.release((0, group))
            yield step, started

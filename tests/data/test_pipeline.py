"""What reaches the replicas: the planned samples, once each, the same for any split, and an end that is clean."""

import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from segtrain.data.pipeline import EvaluationData, StepBatch, TrainingData
from segtrain.data.plan import BatchSplit, batch_split, sample_key
from segtrain.data.reader import RowGroupReader
from segtrain.data.shards import Row, unpack_mask
from segtrain.errors import DataError, StorageError
from segtrain.storage import Storage

BATCH = 5


def training(
    data_set, *, worker: int = 0, workers: int = 1, replicas: int = 1, per_replica: int | None = None, **sections
) -> TrainingData:
    recipe = data_set.recipe(**({"train": {"global_batch_size": BATCH}} | sections))
    split = batch_split(BATCH, recipe.data.lanes, workers, replicas, per_replica)
    return TrainingData(
        recipe, data_set.manifest, Storage(), worker=worker, workers=workers, replicas=replicas, split=split
    )


def take(data: TrainingData, count: int, epoch: int = 0, step: int = 0) -> list[StepBatch]:
    with data:
        return list(islice(data.batches(epoch, step), count))


def samples_of(batch: StepBatch) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
    """(id, image, mask, key) of each slot that counts."""
    images, masks, weights, keys = (np.concatenate(parts) for parts in zip(*batch.replicas, strict=True))
    assert weights.tolist() == [1.0] * len(batch.ids) + [0.0] * (len(weights) - len(batch.ids))
    yield from zip(batch.ids, images, masks, keys, strict=False)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    reads = []
    original = RowGroupReader.read

    def read(self: RowGroupReader, shard: int, row_group: int):
        reads.append((shard, row_group))
        return original(self, shard, row_group)

    monkeypatch.setattr(RowGroupReader, "read", read)
    return reads


def test_a_batch_holds_each_pictures_own_pixels_and_mask(tiny) -> None:
    by_id = {row.id: row for row in tiny.rows}
    for batch in take(training(tiny, augment={"flip": 0.0}), 3):
        for name, image, mask, key in samples_of(batch):
            row = by_id[name]
            np.testing.assert_array_equal(mask[..., 0], unpack_mask(row.mask, 24, 32))
            np.testing.assert_array_equal(image[..., 1], mask[..., 0])  # green is the mask
            np.testing.assert_allclose(image[..., 0], int(name[1:]) / 255, atol=1e-6)  # red is the number
            assert key == sample_key(name)


def test_shapes_and_types_are_those_that_the_step_compiles_for(tiny) -> None:
    for batch in take(training(tiny, replicas=2, per_replica=2), 9):
        assert len(batch.replicas) == 2
        for replica in batch.replicas:
            assert [field.dtype.name for field in replica] == ["float32", "float32", "float32", "int64"]
            assert [tuple(field.shape) for field in replica] == [(4, 24, 32, 3), (4, 24, 32, 1), (4,), (4,)]


def test_every_training_picture_comes_once_an_epoch_and_the_next_epoch_follows(tiny) -> None:
    data = training(tiny)
    assert (data.samples_per_epoch, data.steps_per_epoch) == (38, 8)
    batches = take(data, 16)
    assert [(batch.epoch, batch.step) for batch in batches] == [(e, s) for e in (0, 1) for s in range(8)]
    epochs = [[name for batch in batches[at : at + 8] for name in batch.ids] for at in (0, 8)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(row.id for row in tiny.rows[9:])] * 2
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("workers", "replicas", "per_replica"), [(2, 1, None), (3, 2, None), (4, 1, 1), (1, 3, 1)])
def test_any_split_sees_the_same_augmented_samples(tiny, workers: int, replicas: int, per_replica: int | None) -> None:
    augment = {"flip": 0.5, "rotate_degrees": 20.0, "brightness": 0.2}
    alone = [list(samples_of(batch)) for batch in take(training(tiny, augment=augment), 9)]
    split: list[list] = [[] for _ in alone]
    for worker in range(workers):
        data = training(
            tiny, worker=worker, workers=workers, replicas=replicas, per_replica=per_replica, augment=augment
        )
        for samples, batch in zip(split, take(data, 9), strict=True):
            samples.extend(samples_of(batch))
    for expected, samples in zip(alone, split, strict=True):
        assert sorted(sample[0] for sample in samples) == sorted(sample[0] for sample in expected)
        found = {sample[0]: sample for sample in samples}
        for name, image, mask, key in expected:
            np.testing.assert_array_equal(found[name][1], image)
            np.testing.assert_array_equal(found[name][2], mask)
            assert found[name][3] == key


@pytest.mark.parametrize("cache", ["off", "memory"])
def test_starting_at_any_step_gives_what_would_have_come(tiny, cache: str) -> None:
    straight = take(training(tiny, data={"cache": cache}), 12)
    for start in (1, 5, 7, 8, 10):
        resumed = take(training(tiny, data={"cache": cache}), 12 - start, *divmod(start, 8))
        for expected, batch in zip(straight[start:], resumed, strict=True):
            assert (batch.epoch, batch.step, batch.ids) == (expected.epoch, expected.step, expected.ids)
            for one, other in zip(expected.replicas, batch.replicas, strict=True):
                np.testing.assert_array_equal(one.images, other.images)


def test_pictures_that_could_not_be_read_are_not_kept_as_failures(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    read = RowGroupReader.read

    def fail(self: RowGroupReader, shard: int, row_group: int) -> list[Row]:
        raise StorageError("no answer")

    with training(tiny, data={"cache": "memory"}) as data:
        monkeypatch.setattr(RowGroupReader, "read", fail)
        with pytest.raises(StorageError):
            next(data.batches(0, 0))
        monkeypatch.setattr(RowGroupReader, "read", read)
        assert len(next(data.batches(0, 0)).ids) == BATCH


def test_a_new_iterator_ends_the_one_before(tiny) -> None:
    with training(tiny) as data:
        first = data.batches(0, 0)
        before = next(first).ids
        assert next(data.batches(0, 0)).ids == before
        assert list(first) == []


def test_a_worker_without_a_sample_gets_a_batch_of_weight_zero(tiny) -> None:
    # The last global batch of 3 samples reaches lanes 3, 0, 1: worker 2 has none.
    batches = take(training(tiny, worker=2, workers=4), 8)
    empty = [batch for batch in batches if not batch.ids]
    assert empty
    for batch in empty:
        for replica in batch.replicas:
            assert not np.any(replica.weights)
            assert np.any(replica.images)  # a repeated picture, so that nothing divides by zero
    resumed = take(training(tiny, worker=2, workers=4), 1, 0, empty[0].step)
    assert resumed[0].ids == []


def test_once_everything_is_decoded_nothing_is_read_again(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = count_reads(monkeypatch)
    with training(tiny) as data:
        batches = data.batches(0, 0)
        for _ in range(8):
            next(batches)
        assert sorted(reads) == [(shard, group) for shard, count in ((1, 7), (2, 6)) for group in range(count)]
        for _ in range(16):
            next(batches)
        assert len(reads) == 13


def test_without_the_cache_each_row_group_is_read_once_an_epoch(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = count_reads(monkeypatch)
    take(training(tiny, data={"cache": "off", "prefetch_batches": 1}), 16)
    # Two epochs of 13 row groups, and up to four steps of the third.
    counts = [reads.count(place) for place in set(reads)]
    assert len(counts) == 13
    assert set(counts) <= {2, 3}


@pytest.mark.parametrize(("cache_bytes", "keeps"), [(38 * 24 * 32 * 4, True), (38 * 24 * 32 * 4 - 1, False)])
def test_the_automatic_cache_is_used_where_the_decoded_set_fits(
    tiny, monkeypatch: pytest.MonkeyPatch, cache_bytes: int, keeps: bool
) -> None:
    reads = count_reads(monkeypatch)
    take(training(tiny, data={"cache_bytes": cache_bytes}), 24)
    assert (len(reads) == 13) == keeps


def test_max_groups_trains_on_these_groups_alone(tiny) -> None:
    data = training(tiny, data={"max_groups": 6})
    groups = {row.id: row.group for row in tiny.rows}
    names = [name for batch in take(data, data.steps_per_epoch) for name in batch.ids]
    assert len({groups[name] for name in names}) == 6
    assert len(names) == len(set(names)) == data.samples_per_epoch


def test_damage_surfaces_in_the_consumer(tiny, tmp_path: Path) -> None:
    manifest = tiny.manifest
    for shard in manifest.shards:
        copy = bytearray((Path(tiny.root) / shard.path).read_bytes())
        copy[shard.row_groups.offset[1]] ^= 1
        (tmp_path / shard.path).parent.mkdir()
        (tmp_path / shard.path).write_bytes(copy)
    data = tiny.recipe(data={"root": str(tmp_path)}, train={"global_batch_size": BATCH})
    split = BatchSplit(per_replica=BATCH, accumulation=1, slots=BATCH)
    with (
        TrainingData(data, manifest, Storage(), worker=0, workers=1, replicas=1, split=split) as damaged,
        pytest.raises(DataError, match="row group 1"),
    ):
        list(islice(damaged.batches(0, 0), 8))


def test_closing_ends_every_thread_even_while_reading(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RowGroupReader.read

    def slow_read(self: RowGroupReader, shard: int, row_group: int):
        time.sleep(0.05)
        return original(self, shard, row_group)

    monkeypatch.setattr(RowGroupReader, "read", slow_read)
    before = set(threading.enumerate())
    for _ in range(3):
        data = training(tiny, data={"decode_threads": 2})
        data.batches(0, 0)
        data.close()
    assert {thread for thread in threading.enumerate() if thread.name.startswith("segtrain")} <= before


@pytest.mark.parametrize(("workers", "replicas"), [(1, 1), (1, 2), (2, 1), (5, 2)])
def test_evaluation_covers_every_picture_once_in_batches_of_one_shape(tiny, workers: int, replicas: int) -> None:
    recipe = tiny.recipe(evaluation={"batch_size": 3})
    seen: list[int] = []
    steps = []
    for worker in range(workers):
        with EvaluationData(
            recipe, tiny.manifest, Storage(), worker=worker, workers=workers, replicas=replicas, folds=[0, 2]
        ) as data:
            batches = list(data.batches())
        steps.append(len(batches))
        assert len(batches) == data.steps
        for batch in batches:
            weights = np.concatenate([replica.weights for replica in batch.replicas])
            images = np.concatenate([replica.images for replica in batch.replicas])
            masks = np.concatenate([replica.masks for replica in batch.replicas])
            assert images.shape == (3 * replicas, 24, 32, 3)
            assert weights.tolist() == [1.0] * len(batch.pictures) + [0.0] * (len(weights) - len(batch.pictures))
            for at, (number, row) in enumerate(batch.pictures):
                assert data.ids[number] == row.id
                np.testing.assert_array_equal(masks[at, ..., 0], unpack_mask(row.mask, row.height, row.width))
                np.testing.assert_array_equal(images[at, ..., 1], masks[at, ..., 0])
                seen.append(number)
    assert sorted(seen) == list(range(27))
    assert len(set(steps)) == 1


def test_evaluation_can_be_repeated(tiny) -> None:
    with EvaluationData(tiny.recipe(), tiny.manifest, Storage(), worker=0, workers=1, replicas=1) as data:
        runs = [[number for batch in data.batches() for number, _ in batch.pictures] for _ in range(2)]
    assert runs == [list(range(9))] * 2

"""What reaches the replicas: the planned samples, once each, the same for any split, and an end that is clean."""

import dataclasses
import io
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.config import DataConfig
from segtrain.config.batch_split import BatchSplit, batch_split
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.shards import Row, unpack_mask
from segtrain.errors import StorageError, UserError
from segtrain.pipeline.batches import EvaluationBatch, StepBatch
from segtrain.pipeline.plan import sample_key
from segtrain.pipeline.worker_data import EvaluationData, TrainingData, batches_ahead
from segtrain.runs.status import World
from segtrain.storage.files import Storage
from tests.support.waiting import wait_until

BATCH = 5


def training(
    data_set, *, worker: int = 0, workers: int = 1, replicas: int = 1, per_replica: int | None = None, **sections
) -> TrainingData:
    recipe = data_set.recipe(**({"train": {"global_batch_size": BATCH}} | sections))
    split = batch_split(BATCH, recipe.data.lanes, workers, replicas, per_replica)
    return TrainingData(recipe, data_set.stored, Storage(), World(workers, worker, replicas), split)


def take(data: TrainingData, count: int, epoch: int = 0, step: int = 0) -> list[StepBatch]:
    with closing(data):
        return list(islice(data.batches(epoch, step), count))


def samples_of(batch: StepBatch) -> Iterator[tuple[str, np.ndarray, np.ndarray, int, np.ndarray]]:
    """(id, image, mask, key, all that was drawn) of each slot that counts."""
    flat = ([*replica[:4], *replica.draws] for replica in batch.replicas)
    images, masks, weights, keys, *draws = (np.concatenate(parts) for parts in zip(*flat, strict=True))
    assert weights.tolist() == [1.0] * len(batch.ids) + [0.0] * (len(weights) - len(batch.ids))
    drawn = np.concatenate([field.reshape(len(weights), -1) for field in draws], axis=1)
    yield from zip(batch.ids, images, masks, keys, drawn, strict=False)


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
    for batch in take(training(tiny), 3):
        for name, image, mask, key, _ in samples_of(batch):
            row = by_id[name]
            np.testing.assert_array_equal(mask[..., 0], unpack_mask(row.mask, 24, 32))
            np.testing.assert_array_equal(image[..., 1], mask[..., 0] * 255)  # green is the mask
            assert set(image[..., 0].flat) == {int(name[1:])}  # red is the number
            assert key == sample_key(name)


def test_shapes_and_types_are_those_that_the_step_compiles_for(tiny) -> None:
    for batch in take(training(tiny, replicas=2, per_replica=2), 9):
        assert len(batch.replicas) == 2
        for replica in batch.replicas:
            assert [field.dtype.name for field in replica[:4]] == ["uint8", "uint8", "float32", "int64"]
            assert [tuple(field.shape) for field in replica[:4]] == [(4, 24, 32, 3), (4, 24, 32, 1), (4,), (4,)]
            assert [field.dtype.name for field in replica.draws] == ["bool", "float32", "float32"]
            assert [tuple(field.shape) for field in replica.draws] == [(4,), (4, 8), (4, 2)]


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
        for name, *values in expected:
            for value, other in zip(values, found[name][1:], strict=True):
                np.testing.assert_array_equal(value, other)


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

    with closing(training(tiny, data={"cache": "memory"})) as data:
        monkeypatch.setattr(RowGroupReader, "read", fail)
        with pytest.raises(StorageError):
            next(data.batches(0, 0))
        monkeypatch.setattr(RowGroupReader, "read", read)
        assert len(next(data.batches(0, 0)).ids) == BATCH


def test_a_new_iterator_ends_the_one_before(tiny) -> None:
    with closing(training(tiny)) as data:
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
    with closing(training(tiny)) as data:
        batches = data.batches(0, 0)
        for _ in range(8):
            next(batches)
        assert sorted(reads) == [(shard, group) for shard, count in ((1, 7), (2, 6)) for group in range(count)]
        for _ in range(16):
            next(batches)
        assert len(reads) == 13


def test_without_the_cache_each_row_group_is_read_once_an_epoch(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = count_reads(monkeypatch)
    take(training(tiny, data={"cache": "off", "prefetch_batches": 1, "read_ahead_bytes": 0}), 16)
    # Two epochs of 13 row groups, and up to four steps of the third.
    counts = [reads.count(place) for place in set(reads)]
    assert len(counts) == 13
    assert set(counts) <= {2, 3}


def test_reading_ahead_reaches_into_the_next_epoch_and_no_further(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = count_reads(monkeypatch)
    with closing(training(tiny, data={"cache": "off", "prefetch_batches": 1})) as data:
        next(data.batches(0, 0))
        wait_until(lambda: len(reads) >= 26)
        time.sleep(0.1)
        assert sorted(reads) == sorted(
            2 * [(shard, group) for shard, count in ((1, 7), (2, 6)) for group in range(count)]
        )


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


def damage(tiny, folder: Path, flip: int) -> TrainingData:
    """Training on a copy of the set of which one bit of the second row group of each shard is flipped."""
    for shard in tiny.manifest.shards:
        copy = bytearray((Path(tiny.root) / shard.path).read_bytes())
        copy[shard.row_groups.offset[1] + flip] ^= 1
        (folder / shard.path).parent.mkdir()
        (folder / shard.path).write_bytes(copy)
    shutil.copy(Path(tiny.root) / tiny.manifest.index.path, folder)
    recipe = tiny.recipe(data={"root": str(folder)}, train={"global_batch_size": BATCH})
    split = BatchSplit(per_replica=BATCH, accumulation=1, slots=BATCH)
    copied = dataclasses.replace(tiny.stored, root=str(folder))
    return TrainingData(recipe, copied, Storage(), World(), split)


def test_a_damaged_picture_leaves_an_empty_slot_and_is_named(tiny, tmp_path: Path) -> None:
    data = damage(tiny, tmp_path, flip=0)  # the head of the first page: none of the row group can be trusted
    whole = take(training(tiny), 8)
    with closing(data):
        batches = list(islice(data.batches(0, 0), 8))
        lost = {row.id for shard in (1, 2) for row in tiny.rows[(9, 29)[shard - 1] + 3 :][:3]}
        assert len(data.reader.quarantined) == 6
        assert all(any(name in sentence for sentence in data.reader.quarantined) for name in lost)
        assert data.reader.counts().quarantined >= 6  # reading ahead has met them in the next epoch too
    for batch, expected in zip(batches, whole, strict=True):
        assert batch.ids == [name for name in expected.ids if name not in lost]
        assert sum(float(np.sum(replica.weights)) for replica in batch.replicas) == len(batch.ids)


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
        with closing(
            EvaluationData(recipe, tiny.stored, Storage(), World(workers, worker, replicas), folds=[0, 2])
        ) as data:
            batches = list(data.batches())
        steps.append(len(batches))
        assert len(batches) == data.steps
        for batch in batches:
            images = np.concatenate([replica.images for replica in batch.replicas])
            masks = np.concatenate([replica.masks for replica in batch.replicas])
            assert images.shape == (3 * replicas, 24, 32, 3)
            for at, (number, row, *part) in enumerate(batch.pictures):
                assert part == [24, 32]
                assert data.ids[number] == row.id
                np.testing.assert_array_equal(masks[at, ..., 0], unpack_mask(row.mask, row.height, row.width))
                np.testing.assert_array_equal(images[at, ..., 1], masks[at, ..., 0] * 255)
                seen.append(number)
    assert sorted(seen) == list(range(27))
    assert len(set(steps)) == 1


def test_evaluation_can_be_repeated(tiny) -> None:
    with closing(EvaluationData(tiny.recipe(), tiny.stored, Storage(), World())) as data:
        runs = [[scene.number for batch in data.batches() for scene in batch.pictures] for _ in range(2)]
    assert runs == [list(range(9))] * 2


@pytest.mark.parametrize(("cache", "reads_again"), [("auto", False), ("memory", False), ("off", True), ("disk", True)])
def test_evaluation_reads_and_decodes_a_picture_once_where_pictures_are_kept(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, reads_again: bool
) -> None:
    read = count_reads(monkeypatch)
    recipe = tiny.recipe(evaluation={"batch_size": 2}, data={"cache": cache, "node_cache": str(tmp_path)})
    with closing(EvaluationData(recipe, tiny.stored, Storage(), World())) as data:
        first = list(data.batches())
        once = len(read)
        second = list(data.batches())
    assert once > 0
    assert len(read) == (2 * once if reads_again else once)
    assert_same_batches(first, second)


@pytest.mark.parametrize("batches_that_fit", [0, 1, 2, 4])
def test_evaluation_keeps_the_first_batches_up_to_the_bytes_that_training_leaves(
    tiny, monkeypatch: pytest.MonkeyPatch, batches_that_fit: int
) -> None:
    recipe = tiny.recipe(evaluation={"batch_size": 2})
    with closing(EvaluationData(recipe, tiny.stored, Storage(), World())) as data:
        expected = list(data.batches())
    room = sum(batch.bytes for batch in expected[:batches_that_fit])
    taken = recipe.data.cache_bytes - room
    with closing(EvaluationData(recipe, tiny.stored, Storage(), World(), taken_bytes=taken)) as data:
        first, second, third = (list(data.batches()) for _ in range(3))
    for found in (first, second, third):
        assert_same_batches(found, expected)
    kept = [one is other for one, other in zip(second, third, strict=True)]
    assert kept == [number < batches_that_fit for number in range(len(expected))]


def test_a_validation_picture_that_could_not_be_read_is_asked_for_again(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny.recipe(evaluation={"batch_size": 9})
    read, failing = RowGroupReader.read, True

    def failing_first(self: RowGroupReader, *place: int) -> list[Row | None]:
        rows = read(self, *place)
        return [None, *rows[1:]] if failing else rows

    monkeypatch.setattr(RowGroupReader, "read", failing_first)
    with closing(EvaluationData(recipe, tiny.stored, Storage(), World())) as data:
        (some,) = data.batches()
        failing = False
        (every,) = data.batches()
        (again,) = data.batches()
    assert 0 < len(some.pictures) < len(every.pictures) == 9
    assert again is every


def test_training_says_how_much_of_the_cache_it_takes(tiny) -> None:
    kept = training(tiny)
    assert kept.kept_bytes == kept.samples_per_epoch * 24 * 32 * 4
    assert training(tiny, data={"cache": "off"}).kept_bytes == 0


def assert_same_batches(found: list[EvaluationBatch], expected: list[EvaluationBatch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.pictures == other.pictures
        for bits, expected_bits in zip(one.truths, other.truths, strict=True):
            np.testing.assert_array_equal(bits, expected_bits)
        for mine, theirs in zip(one.replicas, other.replicas, strict=True):
            count = len(one.pictures)  # what fills the other slots is not the same picture each time
            np.testing.assert_array_equal(mine.images[:count], theirs.images[:count])
            np.testing.assert_array_equal(mine.masks[:count], theirs.masks[:count])


@pytest.mark.parametrize("cache", ["off", "memory"])
def test_crops_are_windows_of_image_and_mask_at_places_that_change_with_the_epoch(tiny, cache: str) -> None:
    by_id = {row.id: row for row in tiny.rows}
    crops: dict[tuple[str, int], tuple[int, int]] = {}
    recipe = {"fit": "crop", "height": 8, "width": 11, "cache": cache}
    for batch in take(training(tiny, data=recipe), 24):
        for name, image, mask, _, _ in samples_of(batch):
            assert image.shape == (8, 11, 3)
            whole = unpack_mask(by_id[name].mask, 24, 32)
            np.testing.assert_array_equal(image[..., 1], mask[..., 0] * 255)
            windows = np.lib.stride_tricks.sliding_window_view(whole, (8, 11))
            places = np.argwhere((windows == mask[..., 0]).all(axis=(2, 3)))
            assert len(places)
            crops[name, batch.epoch] = tuple(places[0])
    assert len({crops[name, 0] for name, _ in crops}) > 5
    assert [crops[name, 0] for name, _ in crops] != [crops[name, 1] for name, _ in crops]


def test_crops_do_not_depend_on_cache_or_workers(tiny) -> None:
    recipe = {"fit": "crop", "height": 8, "width": 11}
    expected = {
        (batch.epoch, name): image
        for batch in take(training(tiny, data=recipe | {"cache": "off"}), 16)
        for name, image, *_ in samples_of(batch)
    }
    for cache, workers in (("memory", 1), ("off", 3)):
        found = {}
        for worker in range(workers):
            data = training(tiny, worker=worker, workers=workers, data=recipe | {"cache": cache})
            for batch in take(data, 16):
                found |= {(batch.epoch, name): image for name, image, *_ in samples_of(batch)}
        assert found.keys() == expected.keys()
        for key, image in found.items():
            np.testing.assert_array_equal(image, expected[key])


def test_a_crop_larger_than_a_picture_is_refused(tiny) -> None:
    with pytest.raises(UserError, match=r"data\.fit is crop, but the smallest pictures are 32 wide or 24 high"):
        training(tiny, data={"fit": "crop", "height": 25, "width": 32})


def test_a_run_on_crops_is_scored_on_whole_pictures(make_row, make_data_set) -> None:
    rng = np.random.default_rng(0)
    sizes = [(24, 32), (20, 30), (24, 28)]
    rows = []
    for number, size in enumerate(sizes):
        mask = (rng.random(size) < 0.5).astype(np.uint8)
        rows.append(make_row(encode_png(np.repeat(mask[..., None] * np.uint8(255), 3, -1)), mask, name=f"p{number}"))
    data_set = make_data_set([[rows], [[dataclasses.replace(rows[0], id="other")]]])
    recipe = data_set.recipe(data={"fit": "crop", "height": 8, "width": 8}, evaluation={"batch_size": 4})
    with closing(EvaluationData(recipe, data_set.stored, Storage(), World())) as data:
        (batch,) = data.batches()
    assert batch.replicas[0].images.shape == (4, 24, 32, 3)
    assert [(scene.height, scene.width) for scene in batch.pictures] == sizes
    for slot, scene in enumerate(batch.pictures):
        mask = batch.replicas[0].masks.numpy()[slot, ..., 0]
        whole = unpack_mask(rows[slot].mask, scene.height, scene.width)
        np.testing.assert_array_equal(mask[: scene.height, : scene.width], whole)
        assert mask.sum() == whole.sum()  # and nothing but zeros around it


def encode_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_node_cache_serves_what_was_read_before(tiny, tmp_path: Path) -> None:
    recipe = {"cache": "disk", "node_cache": str(tmp_path / "cache")}
    counts = []
    for _ in range(2):
        with closing(training(tiny, data=recipe)) as data:
            list(islice(data.batches(0, 0), 8))
            counts.append(data.reader.counts())
    assert counts[0].downloads > 0
    assert (counts[1].downloads, counts[1].downloaded_bytes) == (0, 0)
    assert counts[1].cache_hits > 0


@pytest.mark.parametrize(
    ("prefetch_bytes", "batch_bytes", "ahead"),
    [(0, 100, (1, 1)), (300, 100, (1, 2)), (10**9, 100, (4, 2)), (500, 100, (3, 2)), (10**9, 0, (4, 2))],
)
def test_batches_ahead_stay_within_their_bytes(prefetch_bytes: int, batch_bytes: int, ahead: tuple[int, int]) -> None:
    assert batches_ahead(DataConfig(prefetch_bytes=prefetch_bytes), batch_bytes) == ahead


def test_workers_on_one_machine_share_its_cores(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    found = {}
    for workers_here, cpus in ((1, 1), (4, 1), (4, 2)):
        world = World(workers=4, rank=1, workers_on_machine=workers_here)
        with closing(
            EvaluationData(tiny.recipe(cluster={"cpus_per_worker": cpus}), tiny.stored, Storage(), world)
        ) as data:
            found[workers_here, cpus] = data.host_threads
    assert found == {(1, 1): 12, (4, 1): 3, (4, 2): 2}

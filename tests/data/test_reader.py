"""Damage is found before anything is parsed, repaired by a second download where that helps, and named where not."""

import dataclasses
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from segtrain.data.reader import RowGroupReader
from segtrain.errors import DataError, StorageError
from segtrain.storage import Storage


class CountingStorage(Storage):
    """Local storage that counts range reads and can spoil some of them."""

    def __init__(self, spoiled_reads: int = 0) -> None:
        super().__init__()
        self.reads: list[int] = []
        self.spoiled_reads = spoiled_reads

    def read_range(self, url: str, offset: int, length: int) -> bytes:
        self.reads.append(offset)
        data = super().read_range(url, offset, length)
        if len(self.reads) <= self.spoiled_reads:
            data = data[:-1] + bytes([data[-1] ^ 1])
        return data


@pytest.fixture
def copy(tiny, tmp_path: Path):
    """A copy of the tiny set that a test may damage."""
    shutil.copytree(tiny.root, tmp_path / "copy")
    return dataclasses.replace(tiny, root=str(tmp_path / "copy"))


def flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_every_row_comes_back_as_it_was_written(tiny) -> None:
    reader = RowGroupReader(tiny.manifest, Storage(), tiny.root)
    read = [
        row
        for shard, facts in enumerate(tiny.manifest.shards)
        for row_group in range(len(facts.row_groups))
        for row in reader.read(shard, row_group)
    ]
    assert [row.id for row in read] == [row.id for row in tiny.rows]
    assert [(row.image, row.mask) for row in read] == [(row.image, row.mask) for row in tiny.rows]


def test_a_footer_is_read_once_by_many_threads(tiny) -> None:
    storage = CountingStorage()
    reader = RowGroupReader(tiny.manifest, storage, tiny.root)
    threads = [threading.Thread(target=reader.read, args=(0, number)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    facts = tiny.manifest.shards[0]
    assert sorted(storage.reads) == sorted([facts.footer.offset, *facts.row_groups.offset])


@pytest.mark.parametrize("part", ["row group", "footer"])
def test_a_flipped_bit_is_caught_before_training_sees_it(copy, part: str) -> None:
    facts = copy.manifest.shards[1]
    damaged = facts.row_groups.byte_range(2) if part == "row group" else facts.footer
    path = Path(copy.root) / facts.path
    for position in np.linspace(damaged.offset, damaged.offset + damaged.length - 1, 25).astype(int):
        flip_bit(path, position)
        with pytest.raises(DataError, match=f"fold=1/part-00000.parquet, {part}"):
            RowGroupReader(copy.manifest, Storage(), copy.root).read(1, 2)
        flip_bit(path, position)
    assert len(RowGroupReader(copy.manifest, Storage(), copy.root).read(1, 2)) == 3


@pytest.mark.parametrize("spoiled_reads", [0, 1])
def test_bytes_spoiled_on_the_way_are_downloaded_again(tiny, spoiled_reads: int) -> None:
    storage = CountingStorage(spoiled_reads)
    assert len(RowGroupReader(tiny.manifest, storage, tiny.root).read(0, 0)) == 3
    assert len(storage.reads) == 2 + spoiled_reads


def test_a_shard_cut_short_is_an_error_that_names_it(copy) -> None:
    path = Path(copy.root) / copy.manifest.shards[0].path
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises((DataError, StorageError), match=r"fold=0/part-00000\.parquet"):
        RowGroupReader(copy.manifest, Storage(), copy.root).read(0, 0)


@pytest.mark.parametrize("blob", ["image", "mask"])
def test_a_blob_that_was_wrong_when_written_is_named_by_its_id(tiny, make_data_set, blob: str) -> None:
    good, other = tiny.rows[:2]
    bad = dataclasses.replace(other, **{f"{blob}_crc32c": 1})
    written = make_data_set([[[good, bad]], [[good]]])
    with pytest.raises(DataError, match=f"row group 0, id {bad.id}: the {blob} differs"):
        RowGroupReader(written.manifest, Storage(), written.root).read(0, 0)

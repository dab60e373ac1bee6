"""Damage is found before anything is parsed, repaired by a second download where that helps, and named where not."""

import dataclasses
import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from segtrain.config import StorageConfig
from segtrain.dataset import reader as reader_module
from segtrain.dataset.node_cache import NodeCache
from segtrain.dataset.reader import ReadCounts, RowGroupReader
from segtrain.dataset.shards import Row
from segtrain.errors import DataError, StorageError
from segtrain.storage.files import Storage


class CountingStorage(Storage):
    """Storage that keeps the offset of each range that was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []

    def read_range(self, url: str, offset: int, length: int) -> bytes:
        self.reads.append(offset)
        return super().read_range(url, offset, length)


@pytest.fixture
def copy(tiny, tmp_path: Path):
    """A copy of the tiny set that a test may damage."""
    shutil.copytree(tiny.root, tmp_path / "copy")
    return dataclasses.replace(tiny, root=str(tmp_path / "copy"))


def flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def shard_path(data_set, shard: int) -> Path:
    return Path(data_set.root) / data_set.manifest.shards[shard].path


def read_all(reader: RowGroupReader, data_set) -> list[Row | None]:
    return [
        row
        for shard, facts in enumerate(data_set.manifest.shards)
        for row_group in range(len(facts.row_groups))
        for row in reader.read(shard, row_group)
    ]


def stored_exactly(rows: list[Row]) -> list[Row]:
    """Rows as a shard returns them: `foreground` is float32."""
    return [dataclasses.replace(row, foreground=float(np.float32(row.foreground))) for row in rows]


def test_every_row_comes_back_as_it_was_written(tiny) -> None:
    reader = RowGroupReader(tiny.manifest, Storage(), tiny.root)
    assert read_all(reader, tiny) == stored_exactly(tiny.rows)
    assert reader.quarantined == []


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


def test_only_the_footers_used_last_are_kept(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "FOOTERS_KEPT", 2)
    reader = RowGroupReader(tiny.manifest, Storage(), tiny.root)
    downloads = []
    for shard in (0, 1, 0, 2, 0, 1):
        before = reader.counts()
        reader.read(shard, 0)
        downloads.append((reader.counts() - before).downloads)
    assert downloads == [2, 2, 1, 2, 1, 2]


def test_the_counts_say_what_was_downloaded(tiny) -> None:
    reader = RowGroupReader(tiny.manifest, Storage(), tiny.root)
    reader.read(0, 0)
    first = reader.counts()
    facts = tiny.manifest.shards[0]
    assert first == ReadCounts(downloads=2, downloaded_bytes=facts.footer.length + facts.row_groups.length[0])
    reader.read(0, 1)
    assert reader.counts() - first == ReadCounts(downloads=1, downloaded_bytes=facts.row_groups.length[1])


def test_counts_are_added_over_workers_as_arrays() -> None:
    counts = ReadCounts(1, 2**52, 3, 4, 5, 6)
    assert counts.as_array().dtype == np.float64
    assert ReadCounts.from_array(counts.as_array()) == counts
    assert ReadCounts.from_array(counts.as_array() * 2) == counts + counts


def test_a_picture_whose_bytes_are_damaged_in_storage_is_left_out_and_named(
    copy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "segtrain")
    path = shard_path(copy, 1)
    lost = copy.rows[9 + 7]  # fold 0 has 9; row group 2 of the next shard holds its numbers 6, 7 and 8
    flip_bit(path, path.read_bytes().index(lost.image) + 10)
    reader = RowGroupReader(copy.manifest, Storage(), copy.root)
    for _ in range(2):
        first, missing, third = reader.read(1, 2)
        assert [first, third] == stored_exactly([copy.rows[9 + 6], copy.rows[9 + 8]])
        assert missing is None
    sentence = f"fold=1/part-00000.parquet, row group 2, id {lost.id}: the image differs from its own checksum"
    assert reader.quarantined == [sentence]
    assert [sentence in record.getMessage() for record in caplog.records] == [True]
    counts = reader.counts()
    assert (counts.downloads, counts.downloaded_again, counts.quarantined) == (1 + 2 * 2, 2, 2)


def test_a_damaged_mask_loses_its_picture_too(copy) -> None:
    path = shard_path(copy, 0)
    flip_bit(path, path.read_bytes().index(copy.rows[4].mask) + 3)
    reader = RowGroupReader(copy.manifest, Storage(), copy.root)
    assert [row is None for row in read_all(reader, copy)] == [number == 4 for number in range(47)]
    assert reader.quarantined[0].endswith("the mask differs from its own checksum")


def test_damage_that_hits_no_picture_loses_none_but_is_logged(copy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "segtrain")
    path = shard_path(copy, 0)
    least = path.read_bytes().index(copy.rows[0].id.encode())  # in the statistics of the page, which nothing here uses
    flip_bit(path, least)
    reader = RowGroupReader(copy.manifest, Storage(), copy.root)
    assert reader.read(0, 0) == stored_exactly(copy.rows[:3])
    assert "row group 0 differs from its checksum, but no picture does" in caplog.text
    assert reader.counts().downloaded_again == 1


def test_damaged_small_columns_lose_the_row_group_and_its_ids_come_from_the_index(copy) -> None:
    path = shard_path(copy, 0)
    flip_bit(path, path.read_bytes().rindex(copy.rows[4].id.encode()))
    reader = RowGroupReader(copy.manifest, Storage(), copy.root)
    assert [row is None for row in read_all(reader, copy)] == [3 <= number < 6 for number in range(47)]
    assert [sentence.split(": ")[0] for sentence in reader.quarantined] == [
        f"fold=0/part-00000.parquet, row group 1, id {row.id}" for row in copy.rows[3:6]
    ]
    assert "its small columns too" in reader.quarantined[0]


def test_without_the_footer_nothing_in_a_shard_can_be_found(copy) -> None:
    facts = copy.manifest.shards[1]
    flip_bit(shard_path(copy, 1), facts.footer.offset + 100)
    reader = RowGroupReader(copy.manifest, Storage(), copy.root)
    assert [row is None for row in read_all(reader, copy)] == [9 <= number < 29 for number in range(47)]
    assert len(reader.quarantined) == 20
    assert reader.quarantined[19] == (
        f"fold=1/part-00000.parquet, row group 6, id {copy.rows[28].id}: "
        "the shard's footer in storage differs from the manifest's checksum"
    )


def test_a_shard_cut_short_is_quarantined_from_where_it_ends(copy) -> None:
    reader = RowGroupReader(copy.manifest, Storage(), copy.root)
    reader.read(1, 0)  # the footer is in memory from here on
    path, facts = shard_path(copy, 1), copy.manifest.shards[1]
    path.write_bytes(path.read_bytes()[: facts.row_groups.offset[3] + 50])
    read = [reader.read(1, row_group) for row_group in range(7)]
    assert [None in rows for rows in read] == [False, False, False, True, True, True, True]
    assert len(reader.quarantined) == 3 + 3 + 3 + 2
    assert reader.quarantined[0].endswith("the shard ends before its row group does")


def test_where_the_index_is_lost_as_well_rows_are_numbered(copy) -> None:
    flip_bit(Path(copy.root) / "index.parquet", 100)
    flip_bit(shard_path(copy, 1), copy.manifest.shards[1].footer.offset)
    reader = RowGroupReader(copy.manifest, Storage(), copy.root)
    assert reader.read(1, 6) == [None, None]
    assert "row group 6, id unknown (row 19 of the shard): " in reader.quarantined[1]


def test_a_shard_that_is_not_there_is_an_error_that_names_it(copy) -> None:
    shard_path(copy, 2).unlink()
    reader = RowGroupReader(copy.manifest, Storage(), copy.root)
    with pytest.raises(DataError, match=r"copy/fold=2/part-00000\.parquet is named in the manifest but is not there"):
        reader.read(2, 0)
    assert len(reader.read(1, 0)) == 3
    assert reader.quarantined == []


def test_storage_that_does_not_answer_quarantines_nothing(tiny, s3_root: str) -> None:
    nobody = StorageConfig(endpoint_url="http://127.0.0.1:9", timeout_s=1, deadline_s=0.5)
    reader = RowGroupReader(tiny.manifest, Storage(nobody), s3_root)
    with pytest.raises(StorageError, match=r"fold=0/part-00000\.parquet"):
        reader.read(0, 0)
    assert reader.counts().quarantined == 0


@pytest.mark.parametrize("blob", ["image", "mask"])
def test_a_blob_that_was_wrong_when_written_is_left_out_and_not_downloaded_again(
    tiny, make_data_set, blob: str
) -> None:
    good, other = tiny.rows[:2]
    bad = dataclasses.replace(other, **{f"{blob}_crc32c": 1})
    written = make_data_set([[[good, bad]], [[good]]])
    reader = RowGroupReader(written.manifest, Storage(), written.root)
    assert reader.read(0, 0) == [*stored_exactly([good]), None]
    assert reader.quarantined == [
        f"fold=0/part-00000.parquet, row group 0, id {bad.id}: the {blob} differs from its own checksum"
    ]
    assert reader.counts().downloaded_again == 0


def test_with_a_warm_cache_nothing_is_downloaded(tiny, tmp_path: Path) -> None:
    cold = RowGroupReader(tiny.manifest, Storage(), tiny.root, NodeCache(tmp_path, 2**20))
    read_all(cold, tiny)
    storage = CountingStorage()
    warm = RowGroupReader(tiny.manifest, storage, tiny.root, NodeCache(tmp_path, 2**20))
    assert read_all(warm, tiny) == stored_exactly(tiny.rows)
    assert storage.reads == []
    assert cold.counts().downloads == warm.counts().cache_hits == 3 + 16
    assert warm.counts() == ReadCounts(cache_hits=19)


def test_damaged_bytes_do_not_enter_the_cache(copy, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 2**20)
    path = shard_path(copy, 0)
    position = path.read_bytes().index(copy.rows[0].image)
    flip_bit(path, position)
    assert RowGroupReader(copy.manifest, Storage(), copy.root, cache).read(0, 0)[0] is None
    flip_bit(path, position)
    mended = RowGroupReader(copy.manifest, Storage(), copy.root, cache)
    assert mended.read(0, 0) == stored_exactly(copy.rows[:3])
    assert (mended.counts().downloads, mended.counts().cache_hits) == (1, 1)

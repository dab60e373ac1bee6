"""One shard: what is written comes back, from nothing but the byte ranges that the manifest names."""

import dataclasses
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segtrain.dataset.manifest import Shard
from segtrain.dataset.shards import Row, blob_holds, pack_mask, parse_footer, parse_row_group, unpack_mask, write_shard
from segtrain.errors import DataError
from segtrain.storage.checksums import crc32c


def make_row(number: int, image_bytes: int = 500) -> Row:
    image = np.random.default_rng(number).bytes(image_bytes)
    mask = pack_mask(np.eye(5, 9, dtype=np.uint8))
    return Row(f"id{number}", f"g{number % 2}", 5, 9, 1, 0.1, image, crc32c(image), mask, crc32c(mask))


def write(path: Path, row_groups: list[list[Row]]) -> tuple[Shard, bytes]:
    shard = write_shard(path, "fold=0/part-00000.parquet", 0, row_groups)
    return shard, path.read_bytes()


def parse(shard: Shard, data: bytes, row_group: int) -> list[Row]:
    footer = parse_footer(shard, data[shard.footer.offset :][: shard.footer.length])
    part = shard.row_groups.byte_range(row_group)
    return parse_row_group(shard, footer, row_group, data[part.offset :][: part.length])


@given(arrays(np.bool_, st.tuples(st.integers(1, 33), st.integers(1, 33))))
def test_any_mask_comes_back(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack_mask(pack_mask(mask), *mask.shape), mask)


def test_a_mask_of_another_size_is_refused() -> None:
    packed = pack_mask(np.ones((4, 9), np.uint8))
    with pytest.raises(DataError, match="4x17 pixels need 12"):
        unpack_mask(packed, 4, 17)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack_mask(packed[:-4], 4, 9)


def test_of_a_mask_that_would_fill_the_memory_only_its_size_is_unpacked() -> None:
    bomb = zlib.compress(bytes(2**28))
    tracemalloc.start()
    with pytest.raises(DataError, match="a mask unpacks to more bytes; 6x8 pixels need 6"):
        unpack_mask(bomb, 6, 8)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**20
    for height, width in [(2**31 - 1, 2**31 - 1), (0, 8), (-1, 8)]:
        with pytest.raises(DataError, match="is not possible"):
            unpack_mask(bomb, height, width)
    with pytest.raises(DataError, match="cannot be unpacked: its end is missing"):
        unpack_mask(pack_mask(np.eye(6, 8))[:-2], 6, 8)


def test_a_shard_of_packed_columns_is_not_unpacked(tmp_path: Path) -> None:
    shard, _ = write(tmp_path / "a", [[make_row(0)]])
    table = pq.read_table(tmp_path / "a")
    for options in ({"compression": "zstd", "use_dictionary": False}, {"compression": "none", "use_dictionary": True}):
        pq.write_table(table, tmp_path / "b", **options)
        data = (tmp_path / "b").read_bytes()
        start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        changed = shard.model_copy(update={"bytes": len(data)})
        with pytest.raises(DataError, match="its columns are packed"):
            parse_row_group(changed, parse_footer(changed, data[start:]), 0, data[4:start])


def test_rows_come_back_row_group_by_row_group(tmp_path: Path) -> None:
    row_groups = [[make_row(0), make_row(1)], [make_row(2)], [make_row(3, image_bytes=3_000_000), make_row(4)]]
    shard, data = write(tmp_path / "s.parquet", row_groups)
    assert shard.rows == 5
    assert shard.row_groups.rows == [2, 1, 2]
    for number, rows in enumerate(row_groups):
        read = parse(shard, data, number)
        assert [dataclasses.replace(row, foreground=0.1) for row in read] == rows
        assert read[0].foreground == pytest.approx(0.1)  # stored as float32


def test_a_row_without_a_mask_comes_back_without_one(tmp_path: Path) -> None:
    row = dataclasses.replace(make_row(0), mask=None, mask_crc32c=None, foreground=0.0)
    shard, data = write(tmp_path / "s.parquet", [[row]])
    assert parse(shard, data, 0) == [row]


def test_any_parquet_reader_reads_a_shard(tmp_path: Path) -> None:
    write(tmp_path / "s.parquet", [[make_row(0)], [make_row(1)]])
    table = pq.ParquetFile(tmp_path / "s.parquet").read()
    assert table["id"].to_pylist() == ["id0", "id1"]
    assert table["image"][1].as_py() == make_row(1).image


def test_the_byte_ranges_cover_the_shard_without_gaps(tmp_path: Path) -> None:
    shard, data = write(tmp_path / "s.parquet", [[make_row(0)], [make_row(1), make_row(2)], [make_row(3)]])
    ends = [start + length for start, length in zip(shard.row_groups.offset, shard.row_groups.length, strict=True)]
    assert [4, *ends] == [*shard.row_groups.offset, shard.footer.offset]
    assert shard.footer.offset + shard.footer.length == shard.bytes == len(data)
    for number in range(3):
        part = shard.row_groups.byte_range(number)
        assert crc32c(data[part.offset :][: part.length]) == part.crc32c


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    row_groups = [[make_row(0), make_row(1)], [make_row(2)]]
    assert write(tmp_path / "a.parquet", row_groups) == write(tmp_path / "b.parquet", row_groups)


def test_page_checksums_catch_a_flipped_bit_that_slipped_through(tmp_path: Path) -> None:
    shard, data = write(tmp_path / "s.parquet", [[make_row(0)]])
    damaged = bytearray(data)
    damaged[data.index(make_row(0).image) + 100] ^= 1
    with pytest.raises(DataError, match=r"part-00000\.parquet, row group 0 cannot be read"):
        parse(shard, bytes(damaged), 0)


def test_pages_are_not_checked_where_the_caller_has_checked_the_range(tmp_path: Path) -> None:
    shard, data = write(tmp_path / "s.parquet", [[make_row(0)]])
    footer, part = parse_footer(shard, data[shard.footer.offset :]), shard.row_groups.byte_range(0)
    body = bytearray(data[part.offset :][: part.length])
    body[bytes(body).index(make_row(0).image)] ^= 1
    (row,) = parse_row_group(shard, footer, 0, bytes(body), check_pages=False)
    assert row.image[1:] == make_row(0).image[1:]
    assert not blob_holds(row.image, row.image_crc32c)
    assert blob_holds(row.mask, row.mask_crc32c)


def test_a_blob_and_its_checksum_are_both_there_or_neither_is() -> None:
    assert blob_holds(b"123456789", 0xE3069283)  # the check value of CRC-32C (RFC 3720, B.4 has others)
    assert not blob_holds(b"123456780", 0xE3069283)
    assert blob_holds(None, None)
    assert not blob_holds(None, 0)
    assert not blob_holds(b"", None)


def test_a_footer_that_is_none_is_a_data_error_that_names_the_shard(tmp_path: Path) -> None:
    shard, data = write(tmp_path / "s.parquet", [[make_row(0)]])
    with pytest.raises(DataError, match=r"part-00000\.parquet, footer cannot be read"):
        parse_footer(shard, data[shard.footer.offset :][:-1])


def test_a_short_range_or_a_damaged_footer_is_a_data_error(tmp_path: Path) -> None:
    shard, data = write(tmp_path / "s.parquet", [[make_row(0)]])
    footer = data[shard.footer.offset :]
    part = shard.row_groups.byte_range(0)
    body = data[part.offset :][: part.length]
    with pytest.raises(DataError, match="row group 0 cannot be read"):
        parse_row_group(shard, parse_footer(shard, footer), 0, body[:-10])
    with pytest.raises(DataError, match="footer cannot be read"):
        parse_footer(shard, footer[:-1] + b"X")


def test_another_shards_footer_is_noticed(tmp_path: Path) -> None:
    shard, data = write(tmp_path / "a.parquet", [[make_row(0)]])
    other, other_data = write(tmp_path / "b.parquet", [[make_row(0), make_row(1)]])
    with pytest.raises(DataError):
        parse_row_group(shard, parse_footer(shard, other_data[other.footer.offset :]), 0, data[4 : shard.footer.offset])

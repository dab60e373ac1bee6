"""A thousand damages to stored shards: none gives a wrong byte, none goes unnoticed, none costs more than it must."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest

from segtrain.dataset.manifest import Shard
from segtrain.dataset.reader import ReadCounts, RowGroupReader
from segtrain.dataset.salvage import salvage_row_group
from segtrain.dataset.shards import BLOBS, Row, pack_mask, parse_footer, write_shard
from segtrain.errors import DataError
from segtrain.storage.files import Storage

DAMAGES = 250
"""So many in each of the four regions, every seventh a truncation."""
HEADER_BYTES = 20
"""The shortest page header has a few more."""


def random_row(number: int, generator: np.random.Generator) -> Row:
    """A picture with random bytes for an image of 1.5 to 2.5 KB; every fifth has no mask."""
    image = generator.bytes(int(generator.integers(1500, 2500)))
    mask = None if number % 5 == 4 else pack_mask(generator.random((24, 32)) < 0.5)
    return Row(
        id=f"picture-{number:02d}",
        group=f"group-{number // 2:02d}",
        height=24,
        width=32,
        orientation=1 + number % 8,
        foreground=0.5,
        image=image,
        image_crc32c=google_crc32c.value(image),
        mask=mask,
        mask_crc32c=None if mask is None else google_crc32c.value(mask),
    )


@pytest.fixture
def stored(make_data_set):
    """24 pictures in 2 shards of 3 row groups of 4."""
    generator = np.random.default_rng(0)
    rows = [random_row(number, generator) for number in range(24)]
    groups = [rows[at : at + 4] for at in range(0, 24, 4)]
    return make_data_set([groups[:3], groups[3:]])


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is done to one byte of a shard, or to all from it on."""

    shard: int
    position: int
    bit: int | None
    """The one that is flipped; None where the file ends before `position`."""

    def of(self, data: bytes) -> bytes:
        if self.bit is None:
            return data[: self.position]
        flipped = data[self.position] ^ (1 << self.bit)
        return data[: self.position] + bytes([flipped]) + data[self.position + 1 :]

    def touches_footer(self, shard: Shard) -> bool:
        return self.bit is None or self.position >= shard.footer.offset

    def touches(self, shard: Shard, row_group: int) -> bool:
        part = shard.row_groups.byte_range(row_group)
        if self.bit is None:
            return self.position < part.offset + part.length
        return part.offset <= self.position < part.offset + part.length


def regions(path: Path, shard: Shard, rows: list[Row]) -> dict[str, np.ndarray]:
    """Positions of the bytes of each kind in a shard."""
    data = path.read_bytes()
    metadata = pq.read_metadata(path)
    chunks = [metadata.row_group(i).column(j) for i in range(metadata.num_row_groups) for j in range(10)]
    headers = [np.arange(HEADER_BYTES) + chunk.data_page_offset for chunk in chunks]
    small = [
        np.arange(HEADER_BYTES, chunk.total_compressed_size) + chunk.data_page_offset
        for chunk in chunks
        if chunk.path_in_schema not in BLOBS
    ]
    blobs = [blob for row in rows for blob in (row.image, row.mask) if blob is not None]
    return {
        "footer": np.arange(shard.footer.length) + shard.footer.offset,
        "headers": np.concatenate(headers),
        "small columns": np.concatenate(small),
        "blobs": np.concatenate([np.arange(len(blob)) + data.index(blob) for blob in blobs]),
    }


def damages(stored) -> Iterator[tuple[str, Damage]]:
    """As many in every region, evenly over its bytes in both shards, with a seeded bit."""
    generator = np.random.default_rng(1)
    parts = [
        regions(Path(stored.root) / shard.path, shard, stored.rows[12 * number :][:12])
        for number, shard in enumerate(stored.manifest.shards)
    ]
    for region in parts[0]:
        places = [(number, int(at)) for number, part in enumerate(parts) for at in part[region]]
        for at in np.linspace(0, len(places) - 1, DAMAGES).astype(int):
            yield region, Damage(*places[at], bit=int(generator.integers(8)))


def read_all(stored) -> tuple[dict[tuple[int, int], list[Row | None]], ReadCounts, list[str]]:
    reader = RowGroupReader(stored.manifest, Storage(), stored.root)
    rows = {
        (number, row_group): reader.read(number, row_group)
        for number, shard in enumerate(stored.manifest.shards)
        for row_group in range(len(shard.row_groups))
    }
    return rows, reader.counts(), reader.quarantined


def test_a_thousand_damages_give_no_wrong_byte_and_none_goes_unnoticed(
    stored, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "segtrain")  # thousands of warnings, and test_reader.py reads some of them
    whole, counts, _ = read_all(stored)
    assert [row for rows in whole.values() for row in rows] == stored.rows
    assert counts.downloaded_again == counts.quarantined == 0
    lost: dict[str, list[int]] = {}
    for number, (region, damage) in enumerate(damages(stored)):
        if number % 7 == 0:
            damage = dataclasses.replace(damage, bit=None)
        facts = stored.manifest.shards[damage.shard]
        path = Path(stored.root) / facts.path
        intact = path.read_bytes()
        path.write_bytes(damage.of(intact))
        read, counts, sentences = read_all(stored)
        path.write_bytes(intact)

        missing = []
        for (shard, row_group), rows in read.items():
            is_hit = shard == damage.shard and (damage.touches_footer(facts) or damage.touches(facts, row_group))
            for row, right in zip(rows, whole[shard, row_group], strict=True):
                assert row == right or (row is None and is_hit), (region, damage)
                if row is None and right is not None:
                    missing.append(f"{facts.path}, row group {row_group}, id {right.id}: ")
        assert counts.downloaded_again > 0, (region, damage)
        assert counts.quarantined == len(missing)
        assert [sentence[: len(start)] for sentence, start in zip(sentences, missing, strict=True)] == missing
        lost.setdefault(region if damage.bit is not None else "cut short", []).append(len(missing))

    assert sum(map(len, lost.values())) == 1000
    assert set(lost["blobs"]) == {1}  # only the picture that the bit belongs to
    assert set(lost["footer"]) == {12}  # nothing says any more where its pictures lie
    assert set(lost["cut short"]) == {12}  # the footer lies at the end
    assert set(lost["headers"]) <= set(range(5))
    assert set(lost["small columns"]) <= {0, 4}  # none where it is only the statistics of a page


def test_any_flipped_bit_of_the_small_columns_is_harmless_or_gives_the_row_group_up(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    rows = [random_row(number, generator) for number in (3, 4)]
    path = tmp_path / "shard.parquet"
    shard = write_shard(path, "fold=0/part-0.parquet", 0, [rows])
    data = path.read_bytes()
    footer = parse_footer(shard, data[shard.footer.offset :])
    start, end = shard.row_groups.offset[0], shard.footer.offset
    chunks = [footer.row_group(0).column(number) for number in range(footer.num_columns)]
    for chunk in chunks:
        if chunk.path_in_schema in BLOBS:
            continue
        for bit in range(8 * chunk.total_compressed_size):
            damage = Damage(0, chunk.data_page_offset + bit // 8, bit % 8)
            try:
                read = salvage_row_group(shard, footer, 0, damage.of(data)[start:end])
            except DataError:
                continue
            assert read == rows, damage

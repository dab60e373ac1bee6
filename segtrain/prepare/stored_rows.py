"""The contents of a data set for the `prepare` that adds to it: its pictures, facts about them, and their rows.

The index says which pictures there are. Other facts about a picture (its bytes, its digest) come from its row, which is
read once with all checksums; the row is read again when it is written into a new shard.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from segtrain.dataset.manifest import ByteRange, Manifest, Shard
from segtrain.dataset.salvage import LostRow, damage_of, salvage_row_group
from segtrain.dataset.shards import Row, parse_footer, parse_row_group
from segtrain.errors import DataError, ShortFileError
from segtrain.prepare.checks import write_hint
from segtrain.prepare.pairs import FACTS, Checked
from segtrain.prepare.sources import Picture
from segtrain.storage.checksums import crc32c
from segtrain.storage.files import Storage, join
from segtrain.storage.last_used import LastUsed

# Rows of a new shard lie in the order of the old ones, so that one or two row groups serve a while.
ROW_GROUPS_KEPT = 2


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a row lies in a data set."""

    shard: Shard
    row_group: int
    row: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture of a data set."""

    picture: Picture
    """Of which `image` is the shard's path."""
    fold: int
    place: RowPlace


@dataclass(frozen=True, slots=True)
class Known:
    """The facts that the rows of one shard give."""

    facts: dict[str, Checked]
    lost: dict[str, str]
    """Id -> reason, of pictures whose bytes are damaged."""
    bytes: int
    """Read from the shard."""


def stored_pictures(manifest: Manifest, index: pa.Table) -> dict[str, Stored]:
    """Id -> picture, of all pictures of a data set."""
    shards = manifest.shards
    columns = (index[name].to_pylist() for name in ("id", "group", "fold", "shard", "row_group", "row"))
    return {
        id: Stored(Picture(id, group, shards[shard].path), fold, RowPlace(shards[shard], row_group, row))
        for id, group, fold, shard, row_group, row in zip(*columns, strict=True)
    }


def know_shard(storage: Storage, root: str, shard: Shard, ids: Sequence[str], folder: str) -> Known:
    """Read a shard, whose pictures are `ids` in stored order, and keep the facts as a file in `folder`.

    Holds one row group in memory. A shard whose facts an earlier call kept is not read again.
    """
    url = join(folder, f"stored-{shard.sha256[:32]}.json")
    with contextlib.suppress(FileNotFoundError, ValueError):
        facts = FACTS.validate_json(storage.read_bytes(url), strict=True)
        return Known({one.id: one for one in facts}, {}, 0)
    known = Known({}, {}, shard.bytes)
    rows = StoredRows(storage, root)
    left = iter(ids)
    for row_group in range(len(shard.row_groups)):
        for row, id in zip(rows.row_group(shard, row_group), left, strict=False):
            if isinstance(row, Row) and row.id == id:
                known.facts[id] = _facts_of(row)
            else:
                known.lost[id] = row.reason if isinstance(row, LostRow) else f"the index says {id} and the row {row.id}"
    if not known.lost:
        write_hint(storage, url, FACTS.dump_json([*known.facts.values()]))
    return known


def _facts_of(row: Row) -> Checked:
    mask = row.mask or b""
    return Checked(
        id=row.id,
        height=row.height,
        width=row.width,
        orientation=row.orientation,
        foreground=row.foreground,
        image_bytes=len(row.image),
        image_crc32c=row.image_crc32c,
        image_digest=hashlib.sha256(row.image).hexdigest(),
        mask_bytes=len(mask),
        mask_crc32c=crc32c(mask),
        mask_source_crc32c=0,
    )


class StoredRows:
    """Rows of the shards of a data set whose checksums hold; others are `LostRow`."""

    def __init__(self, storage: Storage, root: str) -> None:
        self._storage, self._root = storage, root
        self._row_groups = LastUsed(lambda place: self.row_group(*place), ROW_GROUPS_KEPT)

    def row(self, place: RowPlace, checked: Checked) -> Row:
        """The row at a place, of which `checked` is known. Raises `DataError` where it is damaged by now."""
        row: Row | LostRow = self._row_groups.get((place.shard, place.row_group))[place.row]
        if isinstance(row, LostRow):
            raise DataError(f"{join(self._root, place.shard.path)}, id {checked.id}: {row.reason}")
        if (row.id, row.image_crc32c, row.mask_crc32c) != (checked.id, checked.image_crc32c, checked.mask_crc32c):
            raise DataError(f"{join(self._root, place.shard.path)}, id {checked.id}: another row than before")
        return row

    def row_group(self, shard: Shard, row_group: int) -> Sequence[Row | LostRow]:
        """Read the rows of a row group, in stored order."""
        footer, footer_holds = self._bytes(shard, shard.footer)
        data, holds = self._bytes(shard, shard.row_groups.byte_range(row_group))
        if footer_holds:
            metadata = parse_footer(shard, footer)
            if holds:
                rows = parse_row_group(shard, metadata, row_group, data, check_pages=False)
                return [damage_of(row) or row for row in rows]
            with contextlib.suppress(DataError):
                return salvage_row_group(shard, metadata, row_group, data)
        reason = f"row group {row_group} is not there or differs from its checksum"
        return [LostRow("", reason)] * shard.row_groups.rows[row_group]

    def _bytes(self, shard: Shard, part: ByteRange) -> tuple[bytes, bool]:
        """The bytes of a part, read a second time where they are damaged, and whether they match their checksum."""
        url, data = join(self._root, shard.path), b""
        for _ in range(2):
            try:
                data = self._storage.read_range(url, part.offset, part.length)
            except ShortFileError:
                continue
            except FileNotFoundError:
                return b"", False
            if crc32c(data) == part.crc32c:
                return data, True
        return data, False

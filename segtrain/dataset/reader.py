"""From a place in a data set to checked rows: one range read a row group, no byte trusted before its checksum holds.

Damaged bytes are downloaded a second time. If they differ again, they are damaged in storage: every picture that can
still be proven is returned, the others are quarantined, which means named, counted and left out.
"""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segtrain.dataset.manifest import ByteRange, Manifest, Shard, lost_file, read_index
from segtrain.dataset.node_cache import NodeCache
from segtrain.dataset.salvage import LostRow, damage_of, salvage_row_group
from segtrain.dataset.shards import Row, parse_footer, parse_row_group
from segtrain.errors import DataError, ShortFileError, StorageError, shown
from segtrain.storage.checksums import crc32c
from segtrain.storage.files import Storage, join
from segtrain.storage.last_used import LastUsed

logger = logging.getLogger(__name__)

# 40 MB; the footers of a larger data set come from the node cache time and again.
FOOTERS_KEPT = 512
MOST_UNKNOWN_ROWS = 2**20
"""Of a row group whose number of rows only the manifest tells."""


@dataclasses.dataclass(frozen=True)
class ReadCounts:
    """Counts of what was read; subtract an earlier one to get what has come since."""

    downloads: int = 0
    """Byte ranges that came from storage."""
    downloaded_bytes: int = 0
    downloaded_again: int = 0
    """Ranges downloaded a second time because the first bytes were damaged or too few."""
    retries: int = 0
    """Failed requests that the storage tried again, whatever they were for."""
    cache_hits: int = 0
    """Ranges found in the node cache."""
    quarantined: int = 0
    """Pictures left out because their bytes are damaged; one counts each time its row group is read."""

    def __add__(self, other: "ReadCounts") -> "ReadCounts":
        return ReadCounts(*(own + more for own, more in zip(self._values(), other._values(), strict=True)))

    def __sub__(self, other: "ReadCounts") -> "ReadCounts":
        return ReadCounts(*(own - less for own, less in zip(self._values(), other._values(), strict=True)))

    def as_array(self) -> NDArray[np.float64]:
        """(6,) float64, exact to 2^53, for sums over workers."""
        return np.array(self._values(), np.float64)

    @classmethod
    def from_array(cls, values: NDArray[np.float64]) -> "ReadCounts":
        """The inverse of `as_array`."""
        return cls(*(int(value) for value in values))

    def _values(self) -> tuple[int, ...]:
        return tuple(vars(self).values())  # `dataclasses.astuple` copies deeply, which takes as long as a read


class RowGroupReader:
    """Reads row groups of one data set. Safe to share between threads; a shard's footer is read once and kept.

    `cache` is the reader's own, so that its hits are the reader's.
    """

    def __init__(self, manifest: Manifest, storage: Storage, root: str, cache: NodeCache | None = None) -> None:
        self._manifest, self._storage, self._root, self._cache = manifest, storage, root, cache
        self._footers = LastUsed(self._read_footer, FOOTERS_KEPT)
        self._ids = LastUsed(self._read_ids, FOOTERS_KEPT)
        self._lock = threading.Lock()
        self._counts = ReadCounts()
        self._retries_before = storage.retries
        self.quarantined: list[str] = []
        """One sentence a quarantined picture: `SHARD, row group N, id X: reason`."""

    def read(self, shard: int, row_group: int) -> list[Row | None]:
        """The rows of a row group of the manifest's shard number `shard`, in stored order; None is in quarantine.

        Raises `DataError` where a shard is missing, or has wrong contents though its checksums hold, and `StorageError`
        where storage fails.
        """
        facts = self._manifest.shards[shard]
        try:
            footer = self._footers.get(shard)
        except _DamagedError:
            lost = self._lost(shard, row_group, "the shard's footer in storage differs from the manifest's checksum")
            return self._admit(facts, row_group, lost)
        try:
            data = self._checked(facts, facts.row_groups.byte_range(row_group))
        except _DamagedError as error:
            return self._admit(facts, row_group, self._salvage(shard, footer, row_group, error.data))
        # The range's checksum has been compared, so those of the pages need not be.
        rows = parse_row_group(facts, footer, row_group, data, check_pages=False)
        return self._admit(facts, row_group, [damage_of(row) or row for row in rows])

    def counts(self) -> ReadCounts:
        """What has been read since this reader was made."""
        with self._lock:
            hits = self._cache.hits if self._cache else 0
            retries = self._storage.retries - self._retries_before
            return dataclasses.replace(self._counts, cache_hits=hits, retries=retries)

    def _read_footer(self, shard: int) -> pq.FileMetaData:
        facts = self._manifest.shards[shard]
        return parse_footer(facts, self._checked(facts, facts.footer))

    def _checked(self, shard: Shard, part: ByteRange) -> bytes:
        """The bytes of a part of a shard, whose checksum holds. Raises `_DamagedError` where it failed twice."""
        if self._cache is None:
            return self._download(shard, part)
        stem = PurePosixPath(shard.path).with_suffix("")
        name = f"{self._manifest.fingerprint}/{stem}/{part.offset}-{part.length}-{part.crc32c:08x}"
        return self._cache.get(name, part.length, part.crc32c, lambda: self._download(shard, part))

    def _download(self, shard: Shard, part: ByteRange) -> bytes:
        data = self._download_once(shard, part)
        if data is None or crc32c(data) != part.crc32c:
            self._count(ReadCounts(downloaded_again=1))
            data = self._download_once(shard, part)
        if data is None or crc32c(data) != part.crc32c:
            raise _DamagedError(data)
        return data

    def _download_once(self, shard: Shard, part: ByteRange) -> bytes | None:
        """The bytes as they come; None where the file ends too early."""
        url = join(self._root, shard.path)
        try:
            data = self._storage.read_range(url, part.offset, part.length)
        except ShortFileError:
            return None
        except FileNotFoundError:
            raise lost_file(self._storage, self._root, self._manifest, url) from None
        self._count(ReadCounts(downloads=1, downloaded_bytes=part.length))
        return data

    def _salvage(
        self, shard: int, footer: pq.FileMetaData, row_group: int, data: bytes | None
    ) -> Sequence[Row | LostRow]:
        if data is None:
            return self._lost(shard, row_group, "the shard ends before its row group does")
        facts = self._manifest.shards[shard]
        try:
            rows = salvage_row_group(facts, footer, row_group, data)
        except DataError:
            return self._lost(
                shard, row_group, "the row group in storage differs from the manifest's checksum, its small columns too"
            )
        if all(isinstance(row, Row) for row in rows):
            logger.warning("%s, row group %d differs from its checksum, but no picture does", facts.path, row_group)
        return rows

    def _lost(self, shard: int, row_group: int, reason: str) -> Sequence[LostRow]:
        """All rows of a row group of which nothing can be believed."""
        sizes = self._manifest.shards[shard].row_groups.rows
        first = sum(sizes[:row_group])
        ids = self._ids.get(shard)[first : first + sizes[row_group]]
        if not ids:
            if sizes[row_group] > MOST_UNKNOWN_ROWS:
                raise DataError(
                    f"{self._manifest.shards[shard].path}, row group {row_group}: {reason}, and the index is damaged; "
                    "make the set again"
                )
            ids = [f"unknown (row {first + number} of the shard)" for number in range(sizes[row_group])]
        return [LostRow(id, reason) for id in ids]

    def _read_ids(self, shard: int) -> list[str]:
        """The ids of a shard's pictures in stored order, from the index; none where that is lost as well."""
        with contextlib.suppress(DataError, StorageError):
            index = read_index(self._storage, self._root, self._manifest)
            ids: list[str] = index.filter(pc.equal(index["shard"], pa.scalar(shard, pa.int32())))["id"].to_pylist()
            if len(ids) == self._manifest.shards[shard].rows:
                return ids
        return []

    def _admit(self, shard: Shard, row_group: int, rows: Sequence[Row | LostRow]) -> list[Row | None]:
        """The rows, with None for lost ones, which are counted and, the first time, named in the log."""
        lost = [row for row in rows if isinstance(row, LostRow)]
        if lost:
            self._count(ReadCounts(quarantined=len(lost)))
        for row in lost:
            sentence = f"{shard.path}, row group {row_group}, id {shown(row.id)}: {row.reason}"
            with self._lock:
                is_new = sentence not in self.quarantined
                if is_new:
                    self.quarantined.append(sentence)
            if is_new:
                logger.warning("left out of training and scores: %s", sentence)
        return [None if isinstance(row, LostRow) else row for row in rows]

    def _count(self, more: ReadCounts) -> None:
        with self._lock:
            self._counts += more


class _DamagedError(Exception):
    """Bytes that were downloaded twice and differ from the manifest's checksum."""

    def __init__(self, data: bytes | None) -> None:
        super().__init__()
        self.data = data

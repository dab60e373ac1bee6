"""From a place in a data set to checked rows: one range read a row group, no byte trusted before its checksum holds."""

import threading

import google_crc32c

from segtrain.data.manifest import ByteRange, Manifest, Shard
from segtrain.data.shards import Row, parse_row_group
from segtrain.errors import DataError
from segtrain.storage import Storage, join


class RowGroupReader:
    """Reads row groups of one data set. Safe to share between threads; footers are read once and kept."""

    def __init__(self, manifest: Manifest, storage: Storage, root: str) -> None:
        self._manifest = manifest
        self._storage = storage
        self._root = root
        self._footers: dict[int, bytes] = {}
        self._footers_lock = threading.Lock()

    def read(self, shard: int, row_group: int) -> list[Row]:
        """The rows of a row group of the manifest's shard number `shard`, in stored order.

        Raises `DataError` that names shard and row group (and id) where bytes differ from the manifest's checksum
        twice in a row or a blob from its own; `StorageError` where storage fails.
        """
        facts = self._manifest.shards[shard]
        footer = self._footer(shard)
        data = self._checked(facts, facts.row_groups.byte_range(row_group), f"row group {row_group}")
        rows = parse_row_group(facts, footer, row_group, data)
        for row in rows:
            _check_blobs(row, f"{facts.path}, row group {row_group}, id {row.id}")
        return rows

    def _footer(self, shard: int) -> bytes:
        # The lock spans the download, so that threads starting on one shard do not fetch its footer many times.
        with self._footers_lock:
            if shard not in self._footers:
                facts = self._manifest.shards[shard]
                self._footers[shard] = self._checked(facts, facts.footer, "footer")
            return self._footers[shard]

    def _checked(self, shard: Shard, part: ByteRange, what: str) -> bytes:
        """The bytes of a part of a shard; they are downloaded again once where the checksum differs."""
        url = join(self._root, shard.path)
        for _ in range(2):
            data = self._storage.read_range(url, part.offset, part.length)
            if google_crc32c.value(data) == part.crc32c:
                return data
        raise DataError(
            f"{url}, {what}: bytes {part.offset} to {part.offset + part.length} differ from the manifest's checksum, "
            "downloaded twice; the data set is damaged, make it again with jobs/prepare.py"
        )


def _check_blobs(row: Row, where: str) -> None:
    for name, blob, crc32c in (("image", row.image, row.image_crc32c), ("mask", row.mask, row.mask_crc32c)):
        if blob is not None and google_crc32c.value(blob) != crc32c:
            raise DataError(f"{where}: the {name} differs from its own checksum; make the data set again")

"""What can still be proven of a row group whose bytes are damaged in storage."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat

import pyarrow as pa
import pyarrow.parquet as pq

from segtrain.dataset.manifest import Shard
from segtrain.dataset.shards import BLOBS, SMALL_COLUMNS, Row, blob_holds, errors_name_row_group, open_row_group
from segtrain.dataset.soundness import MOST_PIXELS
from segtrain.errors import DataError, first_fault
from segtrain.storage.ids import check_id


@dataclass(frozen=True, slots=True)
class LostRow:
    """A picture that is in the data set but cannot be had."""

    id: str
    reason: str


def row_of(id: str, row: Row | None) -> Row | LostRow:
    """The row that the index calls `id`, as it was read; lost where it could not be, or is another one."""
    if row is None:
        return LostRow(id, "its bytes in storage are damaged")
    return row if row.id == id else LostRow(id, "its shard holds another picture in its place")


def damage_of(row: Row) -> LostRow | None:
    """The reason against a row by its own checksums, its id and its size; None where it is sound."""
    reason = check_id(row.id, older=True)
    is_possible = row.height >= 1 and row.width >= 1 and row.height * row.width <= MOST_PIXELS
    damaged = [name for name in BLOBS if not blob_holds(getattr(row, name), getattr(row, f"{name}_crc32c"))]
    fault = first_fault(
        (reason is not None, f"its id {reason}"),
        (not is_possible, f"its size of {row.width}x{row.height} is not possible"),
        (damaged != [], " and ".join(f"the {name} differs from its own checksum" for name in damaged)),
    )
    return None if fault is None else LostRow(row.id, fault)


def salvage_row_group(shard: Shard, footer: pq.FileMetaData, row_group: int, data: bytes) -> list[Row | LostRow]:
    """The rows of a row group whose range differs from its checksum, in stored order.

    The small columns are believed where every page matches its checksum; among them are the checksums of the blobs,
    which decide about each row. Raises `DataError` where the small columns cannot be believed.
    """
    with errors_name_row_group(shard, row_group):
        parquet = open_row_group(shard, footer, row_group, data, check_pages=True)
        table = parquet.read_row_group(row_group, columns=SMALL_COLUMNS, use_threads=False)
        table.validate(full=True)
    if table.schema.names != SMALL_COLUMNS or table.num_rows != shard.row_groups.rows[row_group]:
        raise DataError(f"{shard.path}, row group {row_group}: the small columns are damaged")
    columns = [chain(_blobs(shard, footer, row_group, data, name), repeat(None)) for name in BLOBS]
    rows = [
        Row(**small, image=image, mask=mask) for small, image, mask in zip(table.to_pylist(), *columns, strict=False)
    ]
    return [damage_of(row) or row for row in rows]


def _blobs(shard: Shard, footer: pq.FileMetaData, row_group: int, data: bytes, name: str) -> Iterator[bytes | None]:
    """The values of a blob column, row by row, up to the first that cannot be read; page checksums would lose all."""
    rows = shard.row_groups.rows[row_group]
    try:
        parquet = open_row_group(shard, footer, row_group, data, check_pages=False)
        batches = parquet.iter_batches(1, row_groups=[row_group], columns=[name], use_threads=False)
        for batch in islice(batches, rows):
            yield batch.column(0)[0].as_py()
    except (OSError, pa.ArrowException, IndexError):
        return

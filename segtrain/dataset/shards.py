"""One shard: a Parquet file of whole pictures, written row group by row group and read back the same way.

Images stay the bytes that they were. A mask is 1 bit a pixel, each row padded to whole bytes, then zlib: 3.5 KB for
a 1918x1280 car and 7 times faster to unpack than a GIF. Blobs are neither compressed nor dictionary-coded by Parquet
(they gain nothing), and every page carries a checksum.
"""

import contextlib
import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segtrain.dataset.manifest import ByteRange, RowGroups, Shard
from segtrain.dataset.soundness import MOST_PIXELS
from segtrain.errors import DataError, first_fault
from segtrain.storage.checksums import crc32c

ROW_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("orientation", pa.int8(), nullable=False),
        pa.field("foreground", pa.float32(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("image_crc32c", pa.uint32(), nullable=False),
        pa.field("mask", pa.binary()),
        pa.field("mask_crc32c", pa.uint32()),
    ]
)
BLOBS = ("image", "mask")
SMALL_COLUMNS = [name for name in ROW_SCHEMA.names if name not in BLOBS]


@dataclass(frozen=True, slots=True)
class Row:
    """One picture as it lies in a shard."""

    id: str
    group: str
    height: int
    """After `orientation` has been applied, as is `width`."""
    width: int
    orientation: int
    """EXIF orientation, 1 to 8, which the reader applies: the bytes are never re-encoded."""
    foreground: float
    """Fraction of object pixels; 0 where there is no mask."""
    image: bytes
    image_crc32c: int
    mask: bytes | None
    mask_crc32c: int | None


def pack_mask(mask: NDArray[np.generic]) -> bytes:
    """A mask (H, W) whose non-zero pixels are object, as stored bytes."""
    return zlib.compress(np.packbits(mask != 0, axis=1).tobytes(), 6)


def unpack_mask(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """The mask (height, width), uint8 {0, 1}. Raises `DataError` where the bytes are not a mask of that size."""
    return np.unpackbits(mask_bits(data, height, width), axis=1, count=width)


def unpack_mask_window(data: bytes, height: int, width: int, window: tuple[slice, slice]) -> NDArray[np.uint8]:
    """The part of a mask (height, width) that `window` (rows, columns) cuts out; only its bytes are unpacked."""
    rows, columns = window
    first = columns.start // 8
    part = mask_bits(data, height, width)[rows, first : -(-columns.stop // 8)]
    return np.unpackbits(part, axis=1)[:, columns.start - 8 * first : columns.stop - 8 * first]


def mask_bits(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """The bits of a mask, uint8 (height, ceil(width / 8)); never more bytes are unpacked than these and one.

    Raises `DataError` where the bytes are not a mask of that size.
    """
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise DataError(f"a mask of {height}x{width} pixels is not possible")
    row_bytes = (width + 7) // 8
    stream = zlib.decompressobj()
    try:
        packed = stream.decompress(data, height * row_bytes + 1)
    except zlib.error as error:
        raise DataError(f"a mask cannot be unpacked: {error}") from None
    needed = height * row_bytes
    found = "more" if len(packed) > needed else len(packed)
    fault = first_fault(
        (len(packed) != needed, f"a mask unpacks to {found} bytes; {height}x{width} pixels need {needed}"),
        (not stream.eof, "a mask cannot be unpacked: its end is missing"),
    )
    if fault is not None:
        raise DataError(fault)
    return np.frombuffer(packed, np.uint8).reshape(height, row_bytes)


def write_shard(local: Path, path: str, fold: int, row_groups: Iterable[Sequence[Row]]) -> Shard:
    """Write one shard to the local file `local` and return its facts under its final name `path`.

    Holds one row group in memory at a time. The same rows give the same bytes.
    """
    writer = pq.ParquetWriter(
        local,
        ROW_SCHEMA,
        compression="none",
        use_dictionary=False,
        write_statistics=SMALL_COLUMNS,
        write_page_checksum=True,
    )
    with writer:
        for rows in row_groups:
            columns = [[getattr(row, name) for row in rows] for name in ROW_SCHEMA.names]
            writer.write_table(pa.table(columns, schema=ROW_SCHEMA), row_group_size=len(rows))
    return _facts(local, path, fold)


def _facts(local: Path, path: str, fold: int) -> Shard:
    """Where the row groups of a finished shard lie, and the checksums of everything in it."""
    metadata = pq.read_metadata(local)
    row_groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    offsets = [facts.column(0).data_page_offset for facts in row_groups]
    last = [facts.column(facts.num_columns - 1) for facts in row_groups]
    ends = [column.data_page_offset + column.total_compressed_size for column in last]
    with local.open("rb") as file:  # part by part: a shard may be larger than memory
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = local.stat().st_size
        *parts, footer = (
            _byte_range(file, start, end) for start, end in zip([*offsets, ends[-1]], [*ends, size], strict=True)
        )
    return Shard(
        path=path,
        fold=fold,
        bytes=size,
        rows=metadata.num_rows,
        sha256=sha256,
        footer=footer,
        row_groups=RowGroups(
            offset=offsets,
            length=[part.length for part in parts],
            crc32c=[part.crc32c for part in parts],
            rows=[facts.num_rows for facts in row_groups],
        ),
    )


def _byte_range(file: BinaryIO, start: int, end: int) -> ByteRange:
    file.seek(start)
    return ByteRange(offset=start, length=end - start, crc32c=crc32c(file.read(end - start)))


def parse_footer(shard: Shard, footer: bytes) -> pq.FileMetaData:
    """Where the columns of a shard lie, from the bytes of its `footer` range; about 80 KB in memory.

    Raises `DataError` that names the shard where the bytes are no Parquet footer.
    """
    try:
        return pq.read_metadata(pa.BufferReader(footer))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{shard.path}, footer cannot be read: {_one_line(error)}") from None


def parse_row_group(
    shard: Shard, footer: pq.FileMetaData, row_group: int, data: bytes, *, check_pages: bool = True
) -> list[Row]:
    """The rows of one row group, from the shard's footer and the bytes of that row group's range.

    Nothing else of the shard is read. With `check_pages` pyarrow compares each page with its checksum, which takes
    twice as long as all the rest: leave it out where the checksum of the whole range has been compared. Raises
    `DataError` that names shard and row group where the bytes are not what the manifest says.
    """
    with errors_name_row_group(shard, row_group):
        parquet = open_row_group(shard, footer, row_group, data, check_pages=check_pages)
        table = parquet.read_row_group(row_group, use_threads=False)
    if not table.schema.equals(ROW_SCHEMA) or table.num_rows != shard.row_groups.rows[row_group]:
        raise DataError(
            f"{shard.path}, row group {row_group} holds {table.num_rows} rows; "
            f"the manifest says {shard.row_groups.rows[row_group]}"
        )
    return [Row(*values) for values in zip(*(column.to_pylist() for column in table.columns), strict=True)]


def blob_holds(blob: bytes | None, checksum: int | None) -> bool:
    """Whether an image or a mask matches its own checksum; a missing mask must have none."""
    if blob is None or checksum is None:
        return blob is None and checksum is None
    return crc32c(blob) == checksum


@contextlib.contextmanager
def errors_name_row_group(shard: Shard, row_group: int) -> Iterator[None]:
    """Turn pyarrow's errors into a `DataError` that names shard and row group."""
    try:
        yield
    except (OSError, pa.ArrowException, IndexError) as error:
        raise DataError(f"{shard.path}, row group {row_group} cannot be read: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def open_row_group(
    shard: Shard, footer: pq.FileMetaData, row_group: int, data: bytes, *, check_pages: bool
) -> pq.ParquetFile:
    """The shard as a Parquet file of which only the bytes of one row group can be read.

    Raises `OSError` for a row group of another number of rows than the manifest's, and for one that is compressed or
    dictionary-coded: segtrain's never are, and nothing bounds what such a one unpacks to.
    """
    facts = footer.row_group(row_group)
    if facts.num_rows != shard.row_groups.rows[row_group]:
        raise OSError(f"holds {facts.num_rows} rows; the manifest says {shard.row_groups.rows[row_group]}")
    columns = [facts.column(number) for number in range(facts.num_columns)]
    if any(column.compression != "UNCOMPRESSED" or column.has_dictionary_page for column in columns):
        raise OSError("its columns are packed, which segtrain's are not")
    window = _Window(data, shard.row_groups.offset[row_group], shard.bytes)
    # The bytes are in memory already: pre-buffering would only hand them through Arrow's I/O threads.
    return pq.ParquetFile(
        pa.PythonFile(window, "r"), metadata=footer, page_checksum_verification=check_pages, pre_buffer=False
    )


class _Window(io.RawIOBase):
    """A file of `size` bytes of which only `data`, from `start` on, is there."""

    def __init__(self, data: bytes, start: int, size: int) -> None:
        self._data, self._start, self._size, self._position = memoryview(data), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        return bytes(self.read_buffer(size))

    def read_buffer(self, size: int = -1) -> memoryview:
        """What pyarrow calls where there is such a method: the same as `read` without a copy."""
        first = self._position - self._start
        last = first + size
        if size < 0 or first < 0 or last > len(self._data):
            raise OSError(f"bytes {self._position} to {self._position + size} are outside the row group")
        self._position += size
        return self._data[first:last]

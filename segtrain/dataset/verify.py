"""Is a data set what its manifest says? Every byte is read and compared, and every pair decoded.

Shards are verified side by side, each in one pass from its first byte to its last with one row group in memory.
Damage never ends the pass: every problem that can be told apart is listed.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segtrain.cluster.fan_out import fan_out
from segtrain.cluster.throughput import Pace
from segtrain.dataset.manifest import INDEX_SCHEMA, ByteRange, Manifest, Shard, load_index
from segtrain.dataset.salvage import LostRow, damage_of, salvage_row_group
from segtrain.dataset.shards import Row, parse_footer, parse_row_group, unpack_mask
from segtrain.dataset.soundness import MOST_PIXELS, wrong_index
from segtrain.dataset.verify_index import wrong_counts, wrong_names
from segtrain.errors import DataError, ShortFileError, StorageError, UserError, shown
from segtrain.pictures.image_files import check_header, check_image
from segtrain.pictures.pillow_files import BadPairError
from segtrain.storage.checksums import crc32c
from segtrain.storage.files import Storage, is_remote, join

READ_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    file: str
    row_group: int
    """-1 where it is about the whole file."""
    id: str
    """Empty where it is about more than one picture."""
    reason: str

    def __str__(self) -> str:
        row_group = f", row group {self.row_group}" if self.row_group >= 0 else ""
        return f"{self.file}{row_group}{f', id {shown(self.id)}' if self.id else ''}: {self.reason}"


@dataclass(slots=True)
class ShardFindings:
    """What verifying one shard has shown."""

    shard: Shard
    most_pixels: int = MOST_PIXELS
    """A larger picture is a problem and is not decoded."""
    problems: list[Problem] = field(default_factory=list)
    names: list[tuple[str, str]] = field(default_factory=list)
    """Id and group of every row that could be read, where there is no index to compare them with."""

    def add(self, reason: str, row_group: int = -1, name: str = "") -> None:
        self.problems.append(Problem(self.shard.path, row_group, name, reason))


def verify(
    storage: Storage,
    root: str,
    manifest: Manifest,
    every_s: float,
    *,
    parallel: bool = True,
    most_pixels: int = MOST_PIXELS,
) -> list[Problem]:
    """Everything that is wrong with the data set at `root`, in stored order; empty where all is right.

    - The index and every shard are compared with the manifest's checksums, every image and mask with its own.
    - Every pair is decoded and compared with its row, the row with the index, the index with the manifest's counts.
    - A picture of more than `most_pixels` is a problem, and is not decoded.

    With `parallel`, sets of 2,000 pictures and more are spread over Ray. Logs the pace every `every_s` seconds.
    """
    problems: list[Problem] = []
    index = _read_index(storage, root, manifest, problems)
    calls = [
        (storage, root, shard, None if index is None else index.filter(pc.equal(index["shard"], number)), most_pixels)
        for number, shard in enumerate(manifest.shards)
    ]
    names: list[tuple[str, str, int]] = []
    pace = Pace("verified", sum(shard.rows for shard in manifest.shards), every_s)
    with fan_out(manifest.pictures, parallel=parallel, is_local=not is_remote(root)) as side_by_side:
        for found in side_by_side(verify_shard, calls):
            problems += found.problems
            names += [(name, group, found.shard.fold) for name, group in found.names]
            pace.add(found.shard.rows, found.shard.bytes)
    problems += [Problem("all shards", -1, name, reason) for name, reason in wrong_names(names)]
    order = {shard.path: number for number, shard in enumerate(manifest.shards)}
    return sorted(problems, key=lambda problem: (order.get(problem.file, -1), problem.row_group))


def _read_index(storage: Storage, root: str, manifest: Manifest, problems: list[Problem]) -> pa.Table | None:
    """The index, whose problems are added to `problems`; None where it is missing or has other columns or bytes."""
    path = manifest.index.path
    try:
        index = load_index(storage, root, manifest)
    except (DataError, StorageError, UserError, pa.ArrowException) as error:
        problems.append(Problem(path, -1, "", " ".join(str(error).split())))
        return None
    wrong = [Problem(path, -1, name, reason) for name, reason in wrong_counts(manifest, index)]
    if not wrong and (reason := wrong_index(manifest, index)) is not None:
        wrong = [Problem(path, -1, "", reason)]
    problems += wrong
    return index if index.schema.equals(INDEX_SCHEMA) else None


def verify_shard(
    storage: Storage,
    root: str,
    shard: Shard,
    index: pa.Table | None,
    most_pixels: int = MOST_PIXELS,
) -> ShardFindings:
    """Read one shard from end to end, compare everything in it, and decode its pairs.

    `index` holds its rows of the index; None where the index cannot be read.
    """
    found = ShardFindings(shard, most_pixels)
    try:
        file = _Pass(storage, join(root, shard.path))
        if file.size != shard.bytes:
            found.add(f"has {file.size} bytes; the manifest says {shard.bytes}")
        footer = _footer(file, found)
        for number in range(len(shard.row_groups)):
            rows = _read_rows(file, found, footer, number)
            wanted = None if index is None else index.filter(pc.equal(index["row_group"], number)).to_pylist()
            if rows is not None:
                _compare(found, number, rows, wanted)
        file.read_rest()
        if file.size == shard.bytes and file.sha256.hexdigest() != shard.sha256:
            found.add("its SHA-256 differs from the manifest's")
    except FileNotFoundError:
        found.add("is named in the manifest but is not there")
    except (StorageError, UserError) as error:
        found.add(f"cannot be read: {error}")
    return found


def _footer(file: "_Pass", found: ShardFindings) -> pq.FileMetaData | None:
    """Where the columns lie; None where the footer is damaged, so that no pair of the shard can be decoded."""
    shard = found.shard
    try:
        data = file.ahead(shard.footer)
        if crc32c(data) != shard.footer.crc32c:
            found.add("the footer differs from the manifest's checksum; its pairs cannot be decoded")
            return None
        return parse_footer(shard, data)
    except ShortFileError:
        found.add("the footer is not there; its pairs cannot be decoded")
    except DataError as error:
        found.add(str(error).removeprefix(f"{shard.path}, "))
    return None


def _read_rows(
    file: "_Pass", found: ShardFindings, footer: pq.FileMetaData | None, number: int
) -> list[Row | LostRow] | None:
    """The rows of a row group, damaged ones as `LostRow`; None where nothing in it can be trusted."""
    shard = found.shard
    data = file.read(shard.row_groups.byte_range(number))
    holds = crc32c(data) == shard.row_groups.crc32c[number]
    if not holds:
        found.add("differs from the manifest's checksum", number)
    if footer is None:
        return None
    try:
        if holds:
            return list(parse_row_group(shard, footer, number, data))
        return salvage_row_group(shard, footer, number, data)
    except DataError as error:
        found.add(str(error).removeprefix(f"{shard.path}, row group {number}").lstrip(": "), number)
        return None


def _compare(
    found: ShardFindings, number: int, rows: Sequence[Row | LostRow], wanted: Sequence[Mapping[str, Any]] | None
) -> None:
    """Check the rows of a row group by themselves and against their rows of the index."""
    for row in rows:
        reasons = [row.reason] if isinstance(row, LostRow) else list(_wrong_in(row, found.most_pixels))
        for reason in reasons:
            found.add(reason, number, row.id)
    if wanted is None:
        found.names += [(row.id, row.group) for row in rows if isinstance(row, Row)]
        return
    if len(rows) != len(wanted):
        found.add(f"has {len(rows)} rows; the index has {len(wanted)}", number)
    for row, entry in zip(rows, wanted, strict=False):
        for name, value in _indexed(row).items():
            if value != entry[name]:
                words = f"its {name} is {shown(str(value))}; the index says {shown(str(entry[name]))}"
                found.add(words, number, row.id)


def _indexed(row: Row | LostRow) -> dict[str, object]:
    """The columns of the index that a row has, too."""
    if isinstance(row, LostRow):
        return {"id": row.id}
    facts: dict[str, object] = {name: getattr(row, name) for name in ("id", "group", "height", "width", "foreground")}
    return facts | {"labelled": row.mask is not None}


def _wrong_in(row: Row, most_pixels: int) -> Iterator[str]:
    """Reasons against a row by itself. Image and mask are decoded in full."""
    damage = damage_of(row)
    if damage is not None:
        yield damage.reason
    try:
        # Of a PNG Pillow decodes all to look for its orientation, and so none that is larger than its row says.
        height, width, orientation = check_header(row.image, min(most_pixels, row.height * row.width))
        if (height, width, orientation) != (row.height, row.width, row.orientation):
            yield (
                f"the image is {width}x{height} with orientation {orientation}; "
                f"the row says {row.width}x{row.height} with {row.orientation}"
            )
        check_image(row.image, most_pixels)
    except BadPairError as error:
        yield str(error)
    try:
        foreground = 0.0 if row.mask is None else unpack_mask(row.mask, row.height, row.width).mean(dtype=np.float64)
    except DataError as error:
        yield str(error)
    else:
        if np.float32(foreground) != np.float32(row.foreground):
            yield f"the mask has a foreground of {foreground:.6f}; the row says {row.foreground:.6f}"


class _Pass:
    """One file, read from beginning to end, with the SHA-256 of everything read."""

    def __init__(self, storage: Storage, url: str) -> None:
        self._storage, self._url = storage, url
        self.size = storage.size(url)
        self.sha256 = hashlib.sha256()
        self._position = 0

    def ahead(self, part: ByteRange) -> bytes:
        """A part that lies ahead; the pass itself does not move."""
        return self._storage.read_range(self._url, part.offset, part.length)

    def read(self, part: ByteRange) -> bytes:
        """A part that lies ahead, cut off where the file ends; the bytes before it are only hashed."""
        skipped = part.offset - self._position
        return self._up_to(part.offset + part.length)[skipped:]

    def read_rest(self) -> None:
        while self._up_to(self._position + READ_BYTES):
            pass

    def _up_to(self, end: int) -> bytes:
        start, end = self._position, min(end, self.size)
        if start >= end:
            return b""
        data = self._storage.read_range(self._url, start, end - start)
        self.sha256.update(data)
        self._position = end
        return data

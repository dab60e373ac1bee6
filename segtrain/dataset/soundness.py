"""Checks of a manifest and an index, made before they decide which file is opened and how much memory is taken.

Each function returns the first thing that is wrong, in words, or None. Numbers in a foreign manifest may be anything:
counts must add up, parts must lie in their files one after the other, and nothing may have more rows than bytes.
"""

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segtrain.errors import shown
from segtrain.storage.ids import check_id, check_relative, has_control

if TYPE_CHECKING:
    from segtrain.dataset.manifest import Manifest, RowGroups, Shard

MOST_PIXELS = 2**29
"""No decoder that training uses reads a larger picture, and prepare takes none."""
MOST_BYTES = 2**48
FINGERPRINT = re.compile("[0-9a-f]{16}")
"""It names files, in caches too."""
UNPACKED = 200
"""An index unpacks to at most this multiple of its file's bytes, plus `UNPACKED_SPARE_BYTES`."""
UNPACKED_SPARE_BYTES = 2**20
ID_BYTES = 5
"""The least that Parquet needs for a unique id: its length and one character."""
CHECKSUM_END = 2**32
ODD_ID = r"^$|^\.\.?$|[\p{Cc}/]"
"""What `check_id` refuses in an older set, as one pattern for a whole column."""


def wrong_manifest(manifest: "Manifest") -> str | None:
    """The first contradiction in a manifest."""
    return next(_wrong_in(manifest), None)


def _wrong_in(manifest: "Manifest") -> Iterator[str]:
    if not manifest.shards or manifest.pictures < 1:
        yield "there is no picture in it"
    if not FINGERPRINT.fullmatch(manifest.fingerprint):
        yield f"fingerprint '{shown(manifest.fingerprint)}' is not 16 hex digits"
    for name in ("created", "source"):
        if has_control(getattr(manifest, name)):
            yield f"{name} has a control character"
    for shard in manifest.shards:
        reason = _wrong_row_groups(shard.row_groups) or _wrong_shard(shard)
        if reason is not None:
            yield f"{shown(shard.path)}: {reason}"
    reason = check_relative(manifest.index.path)
    if reason is not None:
        yield f"index.path '{shown(manifest.index.path)}' {reason}"
    paths = sorted([manifest.index.path, *(shard.path for shard in manifest.shards)])
    yield from (f"two files have the path '{shown(one)}'" for one, other in pairwise(paths) if one == other)
    rows = sum(shard.rows for shard in manifest.shards)
    if rows != manifest.pictures:
        yield f"pictures is {manifest.pictures}; its shards have {rows} rows"
    if not 1 <= manifest.groups <= manifest.pictures:
        yield f"groups is {manifest.groups} for {manifest.pictures} pictures"
    if not 0 <= manifest.labelled <= manifest.pictures:
        yield f"labelled is {manifest.labelled} of {manifest.pictures} pictures"
    if not _is_fraction(manifest.mean_foreground):
        yield f"mean_foreground is {manifest.mean_foreground}, no fraction"
    for name in ("height", "width"):
        least, most = getattr(manifest, f"min_{name}"), getattr(manifest, f"max_{name}")
        if not 1 <= least <= most <= MOST_PIXELS:
            yield f"min_{name} and max_{name} are {least} and {most}"
    yield from _wrong_folds(manifest)


def _wrong_row_groups(parts: "RowGroups") -> str | None:
    """Byte ranges, checksums and numbers of rows that are impossible."""
    if not parts.rows:
        return "has no row groups"
    if min(parts.offset) < 0 or min(parts.length) < 1 or max(parts.offset) + max(parts.length) > MOST_BYTES:
        return "its row groups lie outside of any file"
    if min(parts.crc32c) < 0 or max(parts.crc32c) >= CHECKSUM_END:
        return "has a CRC32C that is no 32-bit number"
    if min(parts.rows) < 1 or any(rows > length for rows, length in zip(parts.rows, parts.length, strict=True)):
        return "has a row group without rows, or with more rows than bytes"
    return None


def _wrong_shard(shard: "Shard") -> str | None:
    """A path that leads out of the data set, parts that do not lie in the file in order, rows that do not add up."""
    reason = check_relative(shard.path)
    if reason is not None:
        return f"path '{shown(shard.path)}' {reason}"
    if not lies_in_order(shard) or shard.footer.offset + shard.footer.length != shard.bytes:
        return "its parts do not lie one after the other in its bytes"
    if shard.rows != sum(shard.row_groups.rows):
        return f"rows is {shard.rows}; its row groups have {sum(shard.row_groups.rows)}"
    return None


def lies_in_order(shard: "Shard") -> bool:
    """Whether row groups and footer follow one another within the shard's bytes and do not overlap."""
    parts = [*zip(shard.row_groups.offset, shard.row_groups.length, strict=True)]
    parts += [(shard.footer.offset, shard.footer.length), (shard.bytes, 0)]
    return all(start <= start + length <= following for (start, length), (following, _) in pairwise([(0, 0), *parts]))


def _wrong_folds(manifest: "Manifest") -> Iterator[str]:
    folds = {facts.fold: facts for facts in manifest.folds}
    if len(folds) < len(manifest.folds) or min(folds, default=0) < 0:
        yield "a fold stands twice, or has a number below 0"
    for facts in manifest.folds:
        if facts.groups < 0 or facts.groups > facts.pictures or not _is_fraction(facts.foreground):
            facts_say = f"{facts.pictures} pictures in {facts.groups} groups with a foreground of {facts.foreground}"
            yield f"fold {facts.fold} has {facts_say}"
    rows = dict.fromkeys(folds, 0)
    for shard in manifest.shards:
        if shard.fold not in folds:
            yield f"{shown(shard.path)} is of fold {shard.fold}, which is not in folds"
            return
        rows[shard.fold] += shard.rows
    for fold, count in rows.items():
        if folds[fold].pictures != count:
            yield f"fold {fold} has {folds[fold].pictures} pictures; its shards have {count} rows"


def _is_fraction(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= 1 + 1e-9


def wrong_index_size(footer: pq.FileMetaData, file_bytes: int, pictures: int) -> str | None:
    """What is wrong with the size that an index's footer states, before anything is unpacked."""
    if footer.num_rows > pictures:
        return f"has {footer.num_rows} rows; the manifest says {pictures} pictures"
    row_groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    columns = [row_group.column(number) for row_group in row_groups for number in range(row_group.num_columns)]
    unpacked = sum(column.total_uncompressed_size for column in columns)
    ids = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "id")
    if unpacked > UNPACKED * file_bytes + UNPACKED_SPARE_BYTES or ids < ID_BYTES * footer.num_rows:
        return (
            f"says that its {file_bytes} bytes unpack to {unpacked}, with {ids} of ids for {footer.num_rows} pictures"
        )
    return None


def wrong_index(manifest: "Manifest", index: pa.Table) -> str | None:
    """Impossible values, ids that are no file names or stand twice, and places that the manifest does not have."""
    if index.num_rows != manifest.pictures:
        return f"has {index.num_rows} rows; the manifest says {manifest.pictures} pictures"
    try:
        index.validate(full=True)
    except pa.ArrowInvalid as error:
        return f"is damaged: {' '.join(str(error).split())}"
    if any(column.null_count for column in index.columns):
        return "has rows with empty cells"
    odd = index["id"].filter(pc.match_substring_regex(index["id"], ODD_ID))
    if len(odd):
        name = odd[0].as_py()
        return f"has a picture whose id, '{shown(name)}', {check_id(name, older=True)}"
    if pc.count_distinct(index["id"]).as_py() < index.num_rows:
        return "has two pictures of one id"
    height, width = (index[name].to_numpy().astype(np.int64) for name in ("height", "width"))
    if min(height.min(), width.min()) < 1 or (height * width).max() > MOST_PIXELS:
        return "has a picture of a size that is none"
    foreground = index["foreground"].to_numpy()
    if not (np.isfinite(foreground).all() and foreground.min() >= 0 and foreground.max() <= 1):
        return "has a foreground that is no fraction"
    return None if _places_match(manifest, index) else "has pictures in other places than the manifest"


def _places_match(manifest: "Manifest", index: pa.Table) -> bool:
    """Whether the rows stand in the order of the shards, and each in its shard's fold."""
    sizes = [rows for shard in manifest.shards for rows in shard.row_groups.rows]
    numbers = [
        (shard.fold, number, row_group)
        for number, shard in enumerate(manifest.shards)
        for row_group in range(len(shard.row_groups))
    ]
    row = np.concatenate([np.arange(size) for size in sizes])
    wanted = [*np.repeat(np.array(numbers, np.int64), sizes, axis=0).T, row]
    names = ("fold", "shard", "row_group", "row")
    return all(np.array_equal(index[name].to_numpy(), column) for name, column in zip(names, wanted, strict=True))

"""Checks of a manifest and an index, made before they decide which file is opened and how much memory is taken.

Each function returns the first thing that is wrong, in words, or None. Numbers in a foreign manifest may be anything:
counts must add up, parts must lie in their files one after the other, and nothing may have more rows than bytes.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segtrain.errors import first_fault, shown
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
    return next(filter(None, _wrong_in(manifest)), None)


def _wrong_in(manifest: "Manifest") -> Iterator[str | None]:
    """What is wrong, one check after the other; later ones may rely on what the earlier ones have looked at."""
    yield first_fault(
        (not manifest.shards or manifest.pictures < 1, "there is no picture in it"),
        (
            not FINGERPRINT.fullmatch(manifest.fingerprint),
            f"fingerprint '{shown(manifest.fingerprint)}' is not 16 hex digits",
        ),
        (has_control(manifest.created), "created has a control character"),
        (has_control(manifest.source), "source has a control character"),
    )
    for shard in manifest.shards:
        reason = _wrong_row_groups(shard.row_groups) or _wrong_path("path", shard.path) or _wrong_parts(shard)
        yield None if reason is None else f"{shown(shard.path)}: {reason}"
    yield _wrong_path("index.path", manifest.index.path)
    paths = sorted([manifest.index.path, *(shard.path for shard in manifest.shards)])
    yield from (f"two files have the path '{shown(one)}'" for one, other in pairwise(paths) if one == other)
    yield _wrong_totals(manifest)
    yield from _wrong_folds(manifest)


def _wrong_row_groups(parts: "RowGroups") -> str | None:
    """Byte ranges, checksums and numbers of rows that are impossible."""
    if not parts.rows:
        return "has no row groups"
    is_outside = min(parts.offset) < 0 or min(parts.length) < 1 or max(parts.offset) + max(parts.length) > MOST_BYTES
    fit = all(1 <= rows <= length for rows, length in zip(parts.rows, parts.length, strict=True))
    return first_fault(
        (is_outside, "its row groups lie outside of any file"),
        (min(parts.crc32c) < 0 or max(parts.crc32c) >= CHECKSUM_END, "has a CRC32C that is no 32-bit number"),
        (not fit, "has a row group without rows, or with more rows than bytes"),
    )


def _wrong_path(field: str, path: str) -> str | None:
    """A path that leads out of the data set."""
    reason = check_relative(path)
    return None if reason is None else f"{field} '{shown(path)}' {reason}"


def _wrong_parts(shard: "Shard") -> str | None:
    """Parts that do not lie in the file one after the other up to its end, rows that do not add up."""
    groups = zip(shard.row_groups.offset, shard.row_groups.length, strict=True)
    parts = [(0, 0), *groups, (shard.footer.offset, shard.footer.length), (shard.bytes, 0)]
    follow = all(start <= start + length <= following for (start, length), (following, _) in pairwise(parts))
    ends = shard.footer.offset + shard.footer.length == shard.bytes
    rows = sum(shard.row_groups.rows)
    return first_fault(
        (not (follow and ends), "its parts do not lie one after the other in its bytes"),
        (shard.rows != rows, f"rows is {shard.rows}; its row groups have {rows}"),
    )


def _wrong_totals(manifest: "Manifest") -> str | None:
    """Counts, a mean and sizes that cannot be."""
    rows, pictures = sum(shard.rows for shard in manifest.shards), manifest.pictures
    return first_fault(
        (rows != pictures, f"pictures is {pictures}; its shards have {rows} rows"),
        (not 1 <= manifest.groups <= pictures, f"groups is {manifest.groups} for {pictures} pictures"),
        (not 0 <= manifest.labelled <= pictures, f"labelled is {manifest.labelled} of {pictures} pictures"),
        (not _is_fraction(manifest.mean_foreground), f"mean_foreground is {manifest.mean_foreground}, no fraction"),
        (
            not 1 <= manifest.min_height <= manifest.max_height <= MOST_PIXELS,
            f"min_height and max_height are {manifest.min_height} and {manifest.max_height}",
        ),
        (
            not 1 <= manifest.min_width <= manifest.max_width <= MOST_PIXELS,
            f"min_width and max_width are {manifest.min_width} and {manifest.max_width}",
        ),
    )


def _wrong_folds(manifest: "Manifest") -> Iterator[str]:
    folds = {facts.fold for facts in manifest.folds}
    if len(folds) < len(manifest.folds) or min(folds, default=0) < 0:
        yield "a fold stands twice, or has a number below 0"
    for facts in manifest.folds:
        if facts.groups < 0 or facts.groups > facts.pictures or not _is_fraction(facts.foreground):
            yield (
                f"fold {facts.fold} has {facts.pictures} pictures in {facts.groups} groups "
                f"with a foreground of {facts.foreground}"
            )
    rows: Counter[int] = Counter()
    for shard in manifest.shards:
        if shard.fold not in folds:
            yield f"{shown(shard.path)} is of fold {shard.fold}, which is not in folds"
        rows[shard.fold] += shard.rows
    for facts in manifest.folds:
        if facts.pictures != rows[facts.fold]:
            yield f"fold {facts.fold} has {facts.pictures} pictures; its shards have {rows[facts.fold]} rows"


def _is_fraction(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= 1 + 1e-9


def wrong_index_size(footer: pq.FileMetaData, file_bytes: int, pictures: int) -> str | None:
    """What is wrong with the size that an index's footer states, before anything is unpacked."""
    row_groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    columns = [row_group.column(number) for row_group in row_groups for number in range(row_group.num_columns)]
    unpacked = sum(column.total_uncompressed_size for column in columns)
    ids = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "id")
    return first_fault(
        (footer.num_rows > pictures, f"has {footer.num_rows} rows; the manifest says {pictures} pictures"),
        (
            unpacked > UNPACKED * file_bytes + UNPACKED_SPARE_BYTES or ids < ID_BYTES * footer.num_rows,
            f"says that its {file_bytes} bytes unpack to {unpacked}, with {ids} of ids for {footer.num_rows} pictures",
        ),
    )


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
    height, width = (index[name].to_numpy().astype(np.int64) for name in ("height", "width"))
    foreground = index["foreground"].to_numpy()
    sizes_are_possible = min(height.min(), width.min()) >= 1 and (height * width).max() <= MOST_PIXELS
    return first_fault(
        (pc.count_distinct(index["id"]).as_py() < index.num_rows, "has two pictures of one id"),
        (not sizes_are_possible, "has a picture of a size that is none"),
        (not ((foreground >= 0) & (foreground <= 1)).all(), "has a foreground that is no fraction"),
        (not _places_match(manifest, index), "has pictures in other places than the manifest"),
    )


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

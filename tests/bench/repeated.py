"""A large data set out of few pairs: each comes again and again under an id of its own.

Drawing and checking 5,000 pictures would take minutes; the layout (128 row groups, shards of 64 MiB) is what `prepare`
gives so many.
"""

import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import pyarrow as pa

from segtrain.config import PrepareConfig
from segtrain.dataset.manifest import (
    INDEX_SCHEMA,
    FoldFacts,
    IndexFile,
    Manifest,
    Shard,
    encode_index,
    write_manifest,
)
from segtrain.dataset.shards import ROW_SCHEMA, Row, write_shard
from segtrain.prepare.layout import Entry, cut_rows, cut_shards
from segtrain.storage.files import Storage, join
from tests.bench.pairs import VIEWS

FOLDS = 5


def repeat(rows: Sequence[Row], dest: str, pictures: int) -> Manifest:
    """Write the rows to a data set at `dest`, again and again until there are `pictures`."""
    storage = Storage()
    by_fold: list[dict[str, Row]] = [{} for _ in range(FOLDS)]
    for number in range(pictures):
        name = f"{number // VIEWS:05d}_{number % VIEWS:02d}"
        row = dataclasses.replace(rows[number % len(rows)], id=name, group=name.partition("_")[0])
        by_fold[number // VIEWS % FOLDS][name] = row
    shards: list[Shard] = []
    index: list[tuple[object, ...]] = []
    for fold, members in enumerate(by_fold):
        for row_groups in _layout(members, pictures):
            _add_index_rows(index, fold, len(shards), row_groups)
            shards.append(_write(storage, dest, f"fold={fold}/part-{len(shards):05d}.parquet", fold, row_groups))
    manifest = _manifest(storage, dest, by_fold, shards, index)
    write_manifest(storage, dest, manifest)
    return manifest


def _layout(members: dict[str, Row], pictures: int) -> list[list[list[Row]]]:
    """Shards of row groups of rows, as `prepare` cuts them."""
    config = PrepareConfig()
    entries = [Entry(name, len(row.image) + len(row.mask or b"")) for name, row in members.items()]
    row_groups = cut_rows(entries, config.row_group_bytes, math.ceil(config.min_row_groups * len(members) / pictures))
    return [
        [[members[entry.id] for entry in group] for group in shard]
        for shard in cut_shards(row_groups, config.shard_bytes)
    ]


def _add_index_rows(index: list[tuple[object, ...]], fold: int, shard: int, row_groups: list[list[Row]]) -> None:
    for number, rows in enumerate(row_groups):
        for at, row in enumerate(rows):
            index.append((row.id, row.group, fold, shard, number, at, row.height, row.width, row.foreground, True))


def _write(storage: Storage, dest: str, path: str, fold: int, row_groups: list[list[Row]]) -> Shard:
    with tempfile.TemporaryDirectory(prefix="segtrain-bench-") as folder:
        shard = write_shard(Path(folder) / "shard.parquet", path, fold, row_groups)
        storage.write_file(join(dest, path), Path(folder) / "shard.parquet")
    return shard


def _manifest(
    storage: Storage, dest: str, by_fold: list[dict[str, Row]], shards: list[Shard], index: list[tuple[object, ...]]
) -> Manifest:
    table = pa.table([list(column) for column in zip(*index, strict=True)], schema=INDEX_SCHEMA)
    data = encode_index(table)
    fingerprint = hashlib.sha256(data).hexdigest()[:16]
    index_file = IndexFile(path=f"index-{fingerprint}.parquet", bytes=len(data), crc32c=google_crc32c.value(data))
    storage.write_bytes(join(dest, index_file.path), data)
    rows = [row for members in by_fold for row in members.values()]
    return Manifest(
        fingerprint=fingerprint,
        created="2026-01-01T00:00:00+00:00",
        source="synthetic",
        pictures=len(rows),
        groups=len({row.group for row in rows}),
        labelled=len(rows),
        mean_foreground=_mean_foreground(rows),
        min_height=min(row.height for row in rows),
        max_height=max(row.height for row in rows),
        min_width=min(row.width for row in rows),
        max_width=max(row.width for row in rows),
        row_schema=ROW_SCHEMA.to_string(),
        folds=[
            FoldFacts(
                fold=fold,
                pictures=len(members),
                groups=len({row.group for row in members.values()}),
                foreground=_mean_foreground(list(members.values())),
            )
            for fold, members in enumerate(by_fold)
        ],
        shards=shards,
        index=index_file,
    )


def _mean_foreground(rows: list[Row]) -> float:
    return math.fsum(row.foreground for row in rows) / max(1, len(rows))

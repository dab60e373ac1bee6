"""Where each picture lies: rows in a seeded random order, cut into row groups and those into shards. No I/O."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# Parquet adds page and chunk headers to every column of a row group (about 60 bytes each) and lengths to each value.
ROW_OVERHEAD_BYTES = 64
ROW_GROUP_OVERHEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture's name and the bytes that its row takes."""

    id: str
    bytes: int


def shuffled(entries: Iterable[Entry], seed: int) -> list[Entry]:
    """The entries in an order that depends on their ids and the seed alone, so that neighbours differ."""
    return sorted(entries, key=lambda entry: hashlib.blake2b(f"{seed}/{entry.id}".encode(), digest_size=16).digest())


def cut_rows(entries: Sequence[Entry], row_group_bytes: int, min_row_groups: int) -> list[list[Entry]]:
    """Row groups of at most `row_group_bytes`, and at least `min_row_groups` of them if there are enough entries.

    Order is kept. A picture that is larger alone has a row group of its own.
    """
    most_rows = max(1, len(entries) // min_row_groups)
    sized = ((entry, entry.bytes + ROW_OVERHEAD_BYTES) for entry in entries)
    return _cut(sized, row_group_bytes, most=most_rows, overhead=ROW_GROUP_OVERHEAD_BYTES)


def cut_shards(row_groups: Iterable[list[Entry]], shard_bytes: int) -> list[list[list[Entry]]]:
    """Shards of about `shard_bytes`: a shard ends before the row group that would take it over. Order is kept."""
    return _cut(((row_group, sum(entry.bytes for entry in row_group)) for row_group in row_groups), shard_bytes)


def _cut(sized: Iterable[tuple[T, int]], limit: int, *, most: int | None = None, overhead: int = 0) -> list[list[T]]:
    """Parts of items, given with their sizes: each of at most `limit` with `overhead`, and at most `most` items."""
    parts: list[list[T]] = []
    filled = 0
    for item, size in sized:
        if not parts or len(parts[-1]) == most or filled + size > limit:
            parts.append([])
            filled = overhead
        parts[-1].append(item)
        filled += size
    return parts

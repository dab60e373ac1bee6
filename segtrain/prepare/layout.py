"""Where each picture lies: rows in a seeded random order, cut into row groups and those into shards. No I/O."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    """Row groups of at most `row_group_bytes`, and at least `min_row_groups` of them as far as there are entries.

    Order is kept. A picture that is larger alone has a row group of its own.
    """
    most_rows = max(1, len(entries) // min_row_groups)
    row_groups: list[list[Entry]] = []
    filled = 0
    for entry in entries:
        size = entry.bytes + ROW_OVERHEAD_BYTES
        if not row_groups or len(row_groups[-1]) == most_rows or filled + size > row_group_bytes:
            row_groups.append([])
            filled = ROW_GROUP_OVERHEAD_BYTES
        row_groups[-1].append(entry)
        filled += size
    return row_groups


def cut_shards(row_groups: Iterable[list[Entry]], shard_bytes: int) -> list[list[list[Entry]]]:
    """Shards of about `shard_bytes`: a shard ends before the row group that would take it over. Order is kept."""
    shards: list[list[list[Entry]]] = []
    filled = 0
    for row_group in row_groups:
        size = sum(entry.bytes for entry in row_group)
        if not shards or filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(row_group)
        filled += size
    return shards

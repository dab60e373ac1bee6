"""Where rows lie: limits in bytes, at least so many row groups, and an order that the ids and the seed decide."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from segtrain.prepare.layout import Entry, cut_rows, cut_shards, shuffled

SIZES = st.lists(st.integers(1, 50_000), min_size=1, max_size=200)


def make(sizes: list[int]) -> list[Entry]:
    return [Entry(f"p{number}", size) for number, size in enumerate(sizes)]


@given(SIZES, st.integers(1024, 100_000), st.integers(1, 300))
def test_row_groups_keep_order_and_limits(sizes: list[int], limit_bytes: int, fewest: int) -> None:
    entries = make(sizes)
    row_groups = cut_rows(entries, limit_bytes, fewest)
    assert list(itertools.chain(*row_groups)) == entries
    assert len(row_groups) >= min(fewest, len(entries))
    assert all(len(group) == 1 or sum(entry.bytes for entry in group) <= limit_bytes for group in row_groups)


@given(SIZES, st.integers(1024, 200_000))
def test_shards_keep_order_and_end_before_the_limit(sizes: list[int], limit_bytes: int) -> None:
    row_groups = [[entry] for entry in make(sizes)]
    shards = cut_shards(row_groups, limit_bytes)
    assert list(itertools.chain(*shards)) == row_groups
    assert all(len(shard) == 1 or sum(group[0].bytes for group in shard) <= limit_bytes for shard in shards)


def test_the_order_depends_on_ids_and_seed_alone() -> None:
    entries = make([1] * 50)
    assert shuffled(reversed(entries), 3) == shuffled(entries, 3)
    assert shuffled(entries, 3) != shuffled(entries, 4)
    assert shuffled(entries, 3) != entries

"""An index that does not agree with its manifest; both are made by hand."""

from typing import Any

import pyarrow as pa
import pytest

from segtrain.dataset.manifest import (
    INDEX_SCHEMA,
    ByteRange,
    FoldFacts,
    IndexFile,
    Manifest,
    RowGroups,
    Shard,
)
from segtrain.dataset.verify_index import wrong_counts, wrong_names


def make_shard(fold: int, rows: list[int]) -> Shard:
    return Shard(
        path=f"fold={fold}/part-00000.parquet",
        fold=fold,
        bytes=0,
        rows=sum(rows),
        sha256="",
        footer=ByteRange(offset=0, length=0, crc32c=0),
        row_groups=RowGroups(offset=rows, length=rows, crc32c=rows, rows=rows),
    )


COLUMNS: dict[str, list[Any]] = {
    "id": ["a", "b", "c", "d"],
    "group": ["g", "g", "g", "h"],
    "fold": [0, 0, 0, 1],
    "shard": [0, 0, 0, 1],
    "row_group": [0, 0, 1, 0],
    "row": [0, 1, 0, 0],
    "height": [4, 5, 6, 4],
    "width": [8, 8, 8, 9],
    "foreground": [0.1, 0.3, 0.0, 0.5],
    "labelled": [True, True, False, True],
}
MANIFEST = Manifest(
    fingerprint="0123456789abcdef",
    created="2026-01-01T00:00:00+00:00",
    source="folder",
    pictures=4,
    groups=2,
    labelled=3,
    mean_foreground=0.3,
    min_height=4,
    max_height=6,
    min_width=8,
    max_width=9,
    row_schema="",
    folds=[
        FoldFacts(fold=0, pictures=3, groups=1, foreground=0.2),
        FoldFacts(fold=1, pictures=1, groups=1, foreground=0.5),
    ],
    shards=[make_shard(0, [2, 1]), make_shard(1, [1])],
    index=IndexFile(path="index.parquet", bytes=0, crc32c=0),
)


def reasons(manifest: Manifest = MANIFEST, **columns: list[Any]) -> list[str]:
    index = pa.table(COLUMNS | columns, schema=INDEX_SCHEMA)
    return [f"{name}: {reason}" if name else reason for name, reason in wrong_counts(manifest, index)]


def test_an_index_that_agrees_has_nothing_wrong() -> None:
    assert reasons() == []


def test_no_picture_needs_a_mask() -> None:
    folds = [facts.model_copy(update={"foreground": 0.0}) for facts in MANIFEST.folds]
    manifest = MANIFEST.model_copy(update={"labelled": 0, "mean_foreground": 0.0, "folds": folds})
    assert reasons(manifest, foreground=[0.0] * 4, labelled=[False] * 4) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pictures": 5}, ["pictures is 4; the manifest says 5"]),
        ({"groups": 3}, ["groups is 2; the manifest says 3"]),
        ({"labelled": 4}, ["labelled is 3; the manifest says 4"]),
        ({"max_height": 7}, ["max_height is 6; the manifest says 7"]),
        ({"min_width": 7}, ["min_width is 8; the manifest says 7"]),
        ({"mean_foreground": 0.31}, ["mean_foreground is 0.300000; the manifest says 0.310000"]),
        ({"folds": MANIFEST.folds[:1]}, ["fold 1 has 1 pictures in 1 groups", "the manifest says nothing"]),
    ],
)
def test_wrong_totals_are_named(change: dict[str, object], expected: list[str]) -> None:
    found = "; ".join(reasons(MANIFEST.model_copy(update=change)))
    assert all(part in found for part in expected)
    assert len(reasons(MANIFEST.model_copy(update=change))) <= len(expected)


PLACE = "is for (fold, shard, row group, row)"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"id": ["a", "b", "a", "a"]}, "a: is there 3 times"),
        ({"group": ["g", "g", "h", "h"]}, "group h is in the folds 0, 1"),
        (
            {"row": [1, 0, 0, 0]},
            f"row 0 {PLACE} (0, 0, 0, 1); the manifest has (0, 0, 0, 0)",
        ),
        (
            {"fold": [0, 0, 1, 1]},
            f"row 2 {PLACE} (1, 0, 1, 0); the manifest has (0, 0, 1, 0)",
        ),
        ({"foreground": [0.1, 0.3, 0.0, 0.6]}, "fold 1 has 1 pictures in 1 groups with a foreground of 0.600000; the"),
    ],
)
def test_wrong_rows_are_named(columns: dict[str, list[Any]], expected: str) -> None:
    assert any(reason.startswith(expected) for reason in reasons(**columns))


def test_other_columns_end_the_comparison() -> None:
    ((name, reason),) = wrong_counts(MANIFEST, pa.table({"id": ["a"]}))
    assert (name, reason) == ("", "has the columns id, not those of format 1")


def test_names_are_compared_over_all_folds() -> None:
    rows: list[tuple[str, str, int]] = [("a", "g", 0), ("b", "g", 2), ("b", "h", 1), ("c", "g", 2)]
    assert list(wrong_names(rows)) == [("b", "is there 2 times"), ("", "group g is in the folds 0, 2")]

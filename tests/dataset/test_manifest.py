"""The manifest: what is refused, and that it parses fast."""

import json
import time
from pathlib import Path

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
    encode_index,
    read_index,
    read_manifest,
    read_manifest_version,
    write_manifest,
)
from segtrain.errors import ConflictError, DataError, UserError
from segtrain.storage.checksums import crc32c
from segtrain.storage.files import Storage

ROW = {"id": "a", "group": "g", "fold": 0, "shard": 0, "row_group": 0, "row": 0}
ROW |= {"height": 4, "width": 6, "foreground": 0.5, "labelled": True}


def make_manifest(row_groups: int = 1, index: bytes = b"") -> Manifest:
    ones, ends = [1] * row_groups, row_groups + 4
    shard = Shard(
        path="fold=0/part-00000.parquet",
        fold=0,
        bytes=ends + 10,
        rows=row_groups,
        sha256="0" * 64,
        footer=ByteRange(offset=ends, length=10, crc32c=1),
        row_groups=RowGroups(offset=list(range(4, ends)), length=ones, crc32c=[4_000_000_000] * row_groups, rows=ones),
    )
    return Manifest(
        fingerprint="0123456789abcdef",
        created="2026-01-01T00:00:00+00:00",
        source="folder",
        pictures=row_groups,
        groups=1,
        labelled=1,
        mean_foreground=0.5,
        min_height=4,
        max_height=4,
        min_width=6,
        max_width=6,
        row_schema="",
        folds=[FoldFacts(fold=0, pictures=row_groups, groups=1, foreground=0.5)],
        shards=[shard],
        index=IndexFile(path="index.parquet", bytes=len(index), crc32c=crc32c(index)),
    )


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = make_manifest(3)
    write_manifest(Storage(), str(tmp_path), manifest)
    assert read_manifest(Storage(), str(tmp_path)) == manifest


def test_only_the_version_that_a_manifest_replaces_gives_way(tmp_path: Path) -> None:
    root = str(tmp_path)
    first = make_manifest()
    write_manifest(Storage(), root, first)
    with pytest.raises(ConflictError):
        write_manifest(Storage(), root, first)
    _, version = read_manifest_version(Storage(), root)
    second = first.model_copy(update={"replaces": version})
    write_manifest(Storage(), root, second)
    with pytest.raises(ConflictError):
        write_manifest(Storage(), root, second)
    assert read_manifest(Storage(), root) == second


def test_a_missing_manifest_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json in .*jobs/prepare\.py"):
        read_manifest(Storage(), str(tmp_path))


def test_a_manifest_of_an_unknown_version_is_refused_before_anything_else_in_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format_version": 2, "all": "different"}')
    with pytest.raises(UserError, match="has format_version 2, this segtrain reads 1"):
        read_manifest(Storage(), str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises((UserError, DataError), match=r"is not JSON|is no manifest of a data set"):
        read_manifest(Storage(), str(tmp_path))


def test_a_damaged_field_is_named(tmp_path: Path) -> None:
    write_manifest(Storage(), str(tmp_path), make_manifest())
    tree = json.loads((tmp_path / "manifest.json").read_text())
    tree["shards"][0]["row_groups"]["rows"] = []
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"shards\.0\.row_groups.*differ in length"):
        read_manifest(Storage(), str(tmp_path))


def test_a_hundred_thousand_row_groups_parse_in_under_a_second(tmp_path: Path) -> None:
    write_manifest(Storage(), str(tmp_path), make_manifest(100_000))
    start_s = time.process_time()
    manifest = read_manifest(Storage(), str(tmp_path))
    assert time.process_time() - start_s < 1.0
    assert len(manifest.shards[0].row_groups) == 100_000


def test_the_index_comes_back_with_its_schema(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([ROW], schema=INDEX_SCHEMA)
    data = encode_index(table)
    (tmp_path / "index.parquet").write_bytes(data)
    read = read_index(Storage(), str(tmp_path), make_manifest(index=data))
    assert read.to_pylist() == [ROW]
    assert read.schema.equals(INDEX_SCHEMA)


@pytest.mark.parametrize("position", [0, 40, -1])
def test_a_flipped_bit_in_the_index_is_caught(tmp_path: Path, position: int) -> None:
    data = bytearray(encode_index(pa.Table.from_pylist([ROW], schema=INDEX_SCHEMA)))
    manifest = make_manifest(index=bytes(data))
    data[position] ^= 1
    (tmp_path / "index.parquet").write_bytes(data)
    with pytest.raises(DataError, match="does not match its checksum"):
        read_index(Storage(), str(tmp_path), manifest)


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index\.parquet is named in the manifest but is not there"):
        read_index(Storage(), str(tmp_path), make_manifest())

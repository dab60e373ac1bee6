"""Manifests and indexes that nobody should believe, and older ones that are still read."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segtrain.dataset.manifest import Manifest, encode_index, read_index, read_manifest
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.verify import verify
from segtrain.errors import DataError, UserError
from segtrain.storage.files import Storage

if TYPE_CHECKING:
    from tests.support.data_sets import DataSet

STORAGE = Storage()
HUGE_ROWS, HUGE_BYTES = 10**12, 2**62


def set_all(tree: dict[str, Any], rows: int, length: int) -> None:
    """A first shard that claims so much, with counts that agree."""
    shard = tree["shards"][0]
    more = rows - shard["rows"]
    groups = shard["row_groups"]
    groups["rows"][-1] += more
    groups["length"][-1] = length
    shard["footer"]["offset"] = groups["offset"][-1] + length
    shard["bytes"] = shard["footer"]["offset"] + shard["footer"]["length"]
    shard["rows"] = rows
    tree["pictures"] += more
    tree["labelled"] += more
    tree["folds"][0]["pictures"] += more


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "rows": (lambda tree: tree["shards"][0]["row_groups"]["rows"].__setitem__(0, HUGE_ROWS), "more rows than bytes"),
    "length": (
        lambda tree: tree["shards"][0]["row_groups"]["length"].__setitem__(0, HUGE_BYTES),
        "outside of any file",
    ),
    "all": (lambda tree: set_all(tree, HUGE_ROWS, HUGE_BYTES), "outside of any file"),
    "offset": (lambda tree: tree["shards"][0]["row_groups"]["offset"].__setitem__(0, -1), "outside of any file"),
    "order": (lambda tree: tree["shards"][0]["row_groups"]["offset"].reverse(), "one after the other"),
    "footer": (lambda tree: tree["shards"][0]["footer"].update(length=10**9), "one after the other"),
    "bytes": (lambda tree: tree["shards"][0].update(bytes=HUGE_BYTES), "one after the other"),
    "shard rows": (lambda tree: tree["shards"][0].update(rows=8), "rows is 8; its row groups have 9"),
    "pictures": (lambda tree: tree.update(pictures=48), "pictures is 48; its shards have 47 rows"),
    "empty": (lambda tree: tree.update(shards=[], pictures=0), "no picture in it"),
    "path": (lambda tree: tree["shards"][0].update(path="../../etc/x"), "leads out of its folder"),
    "absolute": (lambda tree: tree["shards"][0].update(path="/etc/x"), "no relative path"),
    "index": (lambda tree: tree["index"].update(path="../x"), "leads out of its folder"),
    "twice": (lambda tree: tree["shards"][0].update(path=tree["shards"][1]["path"]), "two files have the path"),
    "fold": (lambda tree: tree["folds"][1].update(fold=0), "a fold stands twice"),
    "no fold": (lambda tree: tree["shards"][0].update(fold=7), "fold 7, which is not in folds"),
    "fold pictures": (lambda tree: tree["folds"][1].update(pictures=3), "fold 1 has 3 pictures; its shards have 20"),
    "groups": (lambda tree: tree.update(groups=0), "groups is 0"),
    "labelled": (lambda tree: tree.update(labelled=48), "labelled is 48"),
    "foreground": (lambda tree: tree.update(mean_foreground=float("nan")), "no fraction"),
    "size": (lambda tree: tree.update(min_height=0), "min_height and max_height"),
    "fingerprint": (lambda tree: tree.update(fingerprint="../../x"), "not 16 hex digits"),
    "created": (lambda tree: tree.update(created="\x1b[2J"), "created has a control character"),
    "checksum": (lambda tree: tree["shards"][0]["row_groups"]["crc32c"].__setitem__(0, 2**40), "CRC32C"),
}


@pytest.fixture
def copied(tiny: "DataSet", tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.root, tmp_path / "copy"))


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_that_cannot_be_is_refused_in_a_sentence(copied: Path, name: str) -> None:
    change, reason = EDITS[name]
    tree = json.loads((copied / "manifest.json").read_text())
    change(tree)
    (copied / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=rf"manifest\.json is damaged: .*{reason}"):
        read_manifest(STORAGE, str(copied))


@pytest.mark.parametrize("change", [{"format_version": "a\nb"}, {"a\nb": 1}, {"pictures": "a\nb"}])
def test_what_a_foreign_manifest_says_is_shown_on_one_line(copied: Path, change: dict[str, object]) -> None:
    tree = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(tree | change))
    with pytest.raises((UserError, DataError), match=r"manifest\.json") as caught:
        read_manifest(STORAGE, str(copied))
    assert "\n" not in str(caught.value)


def test_a_manifest_of_great_depth_is_refused(copied: Path) -> None:
    (copied / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match="is not JSON"):
        read_manifest(STORAGE, str(copied))


def test_a_shard_that_claims_more_than_its_file_has_is_read_no_further(copied: Path) -> None:
    tree = json.loads((copied / "manifest.json").read_text())
    set_all(tree, 10**9, 10**12)
    (copied / "manifest.json").write_text(json.dumps(tree))
    manifest = read_manifest(STORAGE, str(copied))
    with pytest.raises(DataError, match="has 47 rows; the manifest says"):
        read_index(STORAGE, str(copied), manifest)
    with pytest.raises(DataError):
        RowGroupReader(manifest, STORAGE, str(copied)).read(0, len(manifest.shards[0].row_groups) - 1)
    lines = "\n".join(map(str, verify(STORAGE, str(copied), manifest, 1e9, parallel=False)))
    assert "pictures is 47; the manifest says 1000000038" in lines


def with_index(root: Path, column: str, value: object) -> Manifest:
    """The set with another value in the last row of its index, whose checksum is right."""
    manifest = read_manifest(STORAGE, str(root))
    columns = read_index(STORAGE, str(root), manifest).to_pydict()
    columns[column][-1] = value
    nullable = pa.schema([field.with_nullable(True) for field in read_index(STORAGE, str(root), manifest).schema])
    table = pa.table(columns, schema=nullable)
    data = encode_index(table) if value is not None else _as_it_is(table)
    (root / "index.parquet").write_bytes(data)
    facts = manifest.index.model_copy(update={"bytes": len(data), "crc32c": google_crc32c.value(data)})
    return manifest.model_copy(update={"index": facts})


def _as_it_is(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("id", "../../../x/pwn", "has a slash"),
        ("id", "a\0b", "has a control character"),
        ("id", "a\nb", "has a control character"),
        ("id", "a\x85b", "has a control character"),
        ("id", "..", "is '..'"),
        ("id", "", "is empty"),
        ("id", "p000", "two pictures of one id"),
        ("id", None, "other columns|empty cells"),
        ("height", 0, "of a size that is none"),
        ("width", 2**31 - 1, "of a size that is none"),
        ("foreground", float("nan"), "no fraction"),
        ("fold", 1, "in other places"),
        ("shard", 9, "in other places"),
        ("row", -1, "in other places"),
    ],
)
def test_an_index_of_what_cannot_be_is_refused_by_who_reads_it_and_by_verify(
    copied: Path, column: str, value: object, reason: str
) -> None:
    manifest = with_index(copied, column, value)
    with pytest.raises(DataError, match=rf"index\.parquet .*({reason})"):
        read_index(STORAGE, str(copied), manifest)
    assert verify(STORAGE, str(copied), manifest, 1e9, parallel=False)


@pytest.mark.parametrize("name", ["x" * 300, "a\\b"])
def test_an_older_set_of_odd_ids_is_still_read_and_verify_names_them(copied: Path, name: str) -> None:
    manifest = with_index(copied, "id", name)
    assert read_index(STORAGE, str(copied), manifest)["id"].to_pylist()[-1] == name
    problems = verify(STORAGE, str(copied), manifest, 1e9, parallel=False)
    assert any("its id has" in problem.reason for problem in problems)


def test_ids_that_differ_in_case_alone_are_read(copied: Path) -> None:
    assert "P000" in read_index(STORAGE, str(copied), with_index(copied, "id", "P000"))["id"].to_pylist()


def test_an_index_that_says_it_unpacks_to_too_much_is_not_unpacked(copied: Path) -> None:
    manifest = read_manifest(STORAGE, str(copied))
    table = read_index(STORAGE, str(copied), manifest)
    groups = pa.array(["g" * 2**20 for _ in range(table.num_rows)])
    spoilt = table.set_column(table.schema.get_field_index("group"), "group", groups)
    sink = pa.BufferOutputStream()
    pq.write_table(spoilt, sink, compression="zstd", use_dictionary=False)
    data = bytes(sink.getvalue())
    (copied / "index.parquet").write_bytes(data)
    facts = manifest.index.model_copy(update={"bytes": len(data), "crc32c": google_crc32c.value(data)})
    with pytest.raises(DataError, match=r"says that its \d+ bytes unpack to 49"):
        read_index(STORAGE, str(copied), manifest.model_copy(update={"index": facts}))


def test_rows_whose_id_or_size_cannot_be_are_left_out(tiny: "DataSet", make_data_set: Callable[..., "DataSet"]) -> None:
    rows = list(tiny.rows[:4])
    rows[0] = dataclasses.replace(rows[0], id="../../pwn")
    rows[1] = dataclasses.replace(rows[1], height=2**31 - 1, width=2**31 - 1)
    data_set = make_data_set([[rows[:2], rows[2:]]])
    reader = RowGroupReader(data_set.manifest, STORAGE, data_set.root)
    assert reader.read(0, 0) == [None, None]
    assert [row and row.id for row in reader.read(0, 1)] == ["p002", "p003"]
    assert "its id has a slash" in reader.quarantined[0]
    assert "is not possible" in reader.quarantined[1]
    reasons = " ".join(map(str, verify(STORAGE, data_set.root, data_set.manifest, 1e9, parallel=False)))
    assert "has a slash" in reasons

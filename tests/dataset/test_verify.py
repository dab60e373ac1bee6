"""Whatever is wrong with a data set is found and listed, wherever it lies; a sound one is all right."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from segtrain.config import Recipe, override
from segtrain.dataset.manifest import IndexFile, Manifest, Shard, encode_index, read_index, read_manifest
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.shards import Row, pack_mask, write_shard
from segtrain.dataset.verify import Problem, verify, verify_shard
from segtrain.errors import DataError
from segtrain.prepare.prepare_set import prepare
from segtrain.storage.files import Storage, join

STORAGE = Storage()
NEVER_S = 1e9


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 pictures in 9 groups: JPEG noise with boxes for masks."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(18):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        mask = np.zeros((30, 40), np.uint8)
        mask[2 : 5 + number, 3:33] = 255
        stem = f"g{number // 2}_{number % 2}"
        Image.fromarray(pixels).save(folder / f"images/{stem}.jpg")
        Image.fromarray(mask).save(folder / f"masks/{stem}.png")
    return folder


@pytest.fixture(scope="module")
def sound(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 3 shards, each with 3 row groups of 2 pictures."""
    root = tmp_path_factory.mktemp("sound") / "set"
    settings = [f"source.path={source}", "source.group_regex=^(g[0-9]+)_", "prepare.folds=3"]
    prepare(override(Recipe(), [*settings, "prepare.min_row_groups=9"]), str(root), parallel=False)
    return root


@dataclasses.dataclass
class Copy:
    """A copy of the sound set that a test may spoil."""

    root: str
    manifest: Manifest

    @property
    def shard(self) -> Shard:
        """The one that tests spoil."""
        return self.manifest.shards[1]

    def read(self, path: str) -> bytes:
        return STORAGE.read_bytes(join(self.root, path))

    def write(self, path: str, data: bytes) -> None:
        STORAGE.write_bytes(join(self.root, path), data)

    def rows(self, row_group: int) -> list[Row]:
        rows = RowGroupReader(self.manifest, STORAGE, self.root).read(1, row_group)
        return [row for row in rows if row is not None]

    def flip(self, offset: int) -> None:
        data = bytearray(self.read(self.shard.path))
        data[offset] ^= 4
        self.write(self.shard.path, bytes(data))

    def problems(self) -> list[Problem]:
        return verify(Storage(), self.root, self.manifest, NEVER_S, parallel=False)

    def lines(self) -> list[str]:
        """The problems, without the file where it is the spoilt shard."""
        return [str(problem).removeprefix(self.shard.path).lstrip(",: ") for problem in self.problems()]


def copy(sound: Path, root: str) -> Copy:
    for path in sound.rglob("*.*"):
        STORAGE.write_file(join(root, str(path.relative_to(sound))), path)
    return Copy(root, read_manifest(STORAGE, root))


@pytest.fixture
def local(sound: Path, tmp_path: Path) -> Copy:
    return copy(sound, str(tmp_path / "copy"))


@pytest.fixture(params=["local", "s3"])
def either(request: pytest.FixtureRequest, sound: Path, tmp_path: Path) -> Copy:
    is_local = request.param == "local"
    return copy(sound, str(tmp_path / "copy") if is_local else request.getfixturevalue("s3_root"))


SHA = "its SHA-256 differs from the manifest's"
ROW_GROUP = "row group 1: differs from the manifest's checksum"


def test_a_sound_set_is_all_right(either: Copy) -> None:
    assert either.problems() == []


@pytest.mark.parametrize("blob", ["image", "mask"])
def test_a_flipped_bit_in_a_blob_names_its_picture(either: Copy, blob: str) -> None:
    row = either.rows(1)[1]
    either.flip(either.read(either.shard.path).index(getattr(row, blob)) + 9)
    damage = f"row group 1, id {row.id}: the {blob} differs from its own checksum"
    assert either.lines() == [SHA, ROW_GROUP, damage]


def test_a_flipped_bit_in_a_small_column_names_the_row_group(either: Copy) -> None:
    row = either.rows(1)[1]
    start, size = either.shard.row_groups.offset[1], either.shard.row_groups.length[1]
    either.flip(either.read(either.shard.path).rindex(row.id.encode(), start, start + size))
    lines = either.lines()
    assert lines[:2] == [SHA, ROW_GROUP]
    assert len(lines) == 3
    assert lines[2].startswith("row group 1: cannot be read")


def test_a_flipped_bit_in_the_footer_is_found(either: Copy) -> None:
    either.flip(either.shard.footer.offset + 20)
    assert either.lines() == ["the footer differs from the manifest's checksum; its pairs cannot be decoded", SHA]


def test_a_flipped_bit_before_the_first_row_group_is_found(local: Copy) -> None:
    assert local.shard.row_groups.offset[0] > 1
    local.flip(1)
    assert local.lines() == [SHA]


def test_every_flipped_bit_of_a_shard_is_found(local: Copy) -> None:
    data = local.read(local.shard.path)
    for offset in range(0, len(data), max(1, len(data) // 97)):
        damaged = bytearray(data)
        damaged[offset] ^= 1 << offset % 8
        local.write(local.shard.path, bytes(damaged))
        assert verify_shard(STORAGE, local.root, local.shard, None).problems, offset


def test_a_missing_shard_is_found(either: Copy) -> None:
    STORAGE.delete(join(either.root, either.shard.path))
    assert either.lines() == ["is named in the manifest but is not there"]


@pytest.mark.parametrize("kept", [0, 3, 700, -1])
def test_a_truncated_shard_is_found(local: Copy, kept: int) -> None:
    local.write(local.shard.path, local.read(local.shard.path)[:kept])
    lines = local.lines()
    assert f"the manifest says {local.shard.bytes}" in lines[0]
    assert any("the footer" in line for line in lines)


def test_a_truncated_object_is_found(sound: Path, s3_root: str) -> None:
    remote = copy(sound, s3_root)
    remote.write(remote.shard.path, remote.read(remote.shard.path)[:-700])
    assert f"the manifest says {remote.shard.bytes}" in remote.lines()[0]


def test_bytes_behind_the_end_are_found(local: Copy) -> None:
    local.write(local.shard.path, local.read(local.shard.path) + b"more")
    assert local.lines() == [f"has {local.shard.bytes + 4} bytes; the manifest says {local.shard.bytes}"]


def test_shards_that_changed_places_are_both_found(local: Copy) -> None:
    paths = [shard.path for shard in local.manifest.shards[:2]]
    first, second = (local.read(path) for path in paths)
    local.write(paths[0], second)
    local.write(paths[1], first)
    assert {problem.file for problem in local.problems()} == set(paths)


def test_all_damage_is_listed_shard_by_shard(local: Copy) -> None:
    first, second, third = local.manifest.shards
    STORAGE.delete(join(local.root, third.path))
    for row_group in (0, 2):
        local.flip(local.shard.row_groups.offset[row_group] + local.shard.row_groups.length[row_group] // 2)
    local.write(first.path, local.read(first.path)[:-1])
    problems = local.problems()
    assert [problem.file for problem in problems] == sorted(problem.file for problem in problems)
    assert {(problem.file, problem.row_group) for problem in problems} >= {
        (first.path, -1),
        (second.path, 0),
        (second.path, 2),
        (third.path, -1),
    }


def test_without_its_index_the_rest_is_still_compared(local: Copy) -> None:
    local.write(local.manifest.index.path, b"damaged")
    local.flip(local.shard.footer.offset)
    problems = local.problems()
    assert [problem.file for problem in problems] == [local.manifest.index.path, local.shard.path, local.shard.path]
    assert "does not match its checksum" in str(problems[0])


def change_index(spoilt: Copy, change: Callable[[dict[str, list[Any]]], None]) -> None:
    """Give the set an index of other contents whose own checksum is right."""
    table = read_index(STORAGE, spoilt.root, spoilt.manifest)
    columns = table.to_pydict()
    change(columns)
    data = encode_index(pa.table(columns, schema=table.schema))
    spoilt.write("index.parquet", data)
    facts = IndexFile(path="index.parquet", bytes=len(data), crc32c=google_crc32c.value(data))
    spoilt.manifest = spoilt.manifest.model_copy(update={"index": facts})


def test_an_index_that_does_not_agree_with_the_rows_is_found(either: Copy) -> None:
    def swap(columns: dict[str, list[Any]]) -> None:
        for name in ("id", "height"):
            columns[name][6:8] = columns[name][6:8][::-1]
        columns["width"][9] = 41

    before = read_index(STORAGE, either.root, either.manifest)["id"].to_pylist()
    change_index(either, swap)
    assert either.lines() == [
        "index.parquet: max_width is 41; the manifest says 40",
        f"row group 0, id {before[6]}: its id is {before[6]}; the index says {before[7]}",
        f"row group 0, id {before[7]}: its id is {before[7]}; the index says {before[6]}",
        f"row group 1, id {before[9]}: its width is 40; the index says 41",
    ]


def test_an_index_with_a_row_too_few_is_found(local: Copy) -> None:
    def drop(columns: dict[str, list[Any]]) -> None:
        for values in columns.values():
            del values[7]

    change_index(local, drop)
    lines = local.lines()
    assert "index.parquet: pictures is 17; the manifest says 18" in lines
    assert "row group 0: has 2 rows; the index has 1" in lines
    assert any("row 7 is for (fold, shard, row group, row) (1, 1, 1, 0)" in line for line in lines)


def replace_rows(spoilt: Copy, change: Callable[[Row], Row]) -> None:
    """Write the shard anew with its first row changed, and all checksums right."""
    row_groups = [spoilt.rows(number) for number in range(3)]
    row_groups[0][0] = change(row_groups[0][0])
    local = Path(spoilt.root) / spoilt.shard.path
    shard = write_shard(local, spoilt.shard.path, spoilt.shard.fold, row_groups)
    shards = [shard if each.path == shard.path else each for each in spoilt.manifest.shards]
    spoilt.manifest = spoilt.manifest.model_copy(update={"shards": shards})


def with_image(row: Row, image: bytes) -> Row:
    return dataclasses.replace(row, image=image, image_crc32c=google_crc32c.value(image))


def with_mask(row: Row, mask: bytes) -> Row:
    return dataclasses.replace(row, mask=mask, mask_crc32c=google_crc32c.value(mask))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: with_image(row, b"no picture"), "image is none of JPEG, PNG, BMP, or is damaged"),
        (lambda row: with_image(row, row.image[:-1]), "image cannot be decoded: image file is truncated"),
        (
            lambda row: with_mask(row, pack_mask(np.ones((29, 40)))),
            "a mask unpacks to 145 bytes; 30x40 pixels need 150",
        ),
        (lambda row: with_mask(row, b"no zlib"), "a mask cannot be unpacked"),
        (
            lambda row: with_mask(row, pack_mask(np.ones((30, 40)))),
            "the mask has a foreground of 1.000000; the row says",
        ),
        (lambda row: dataclasses.replace(row, image_crc32c=7), "the image differs from its own checksum"),
        (
            lambda row: dataclasses.replace(row, orientation=6),
            "the image is 40x30 with orientation 1; the row says 40x30",
        ),
        (lambda row: dataclasses.replace(row, height=31), "its height is 31; the index says 30"),
        (lambda row: dataclasses.replace(row, group="other"), "its group is other; the index says g"),
        (
            lambda row: dataclasses.replace(row, mask=None, mask_crc32c=None),
            "its labelled is False; the index says True",
        ),
    ],
)
def test_a_wrong_pair_is_found_though_all_checksums_hold(
    local: Copy, change: Callable[[Row], Row], reason: str
) -> None:
    name = local.rows(0)[0].id
    replace_rows(local, change)
    lines = local.lines()
    assert any(line.startswith(f"row group 0, id {name}: {reason}") for line in lines), lines
    assert all(line.startswith(f"row group 0, id {name}: ") for line in lines)


def test_a_picture_that_does_not_decode_is_found_in_a_bucket(sound: Path, tmp_path: Path, s3_root: str) -> None:
    spoilt = copy(sound, str(tmp_path / "copy"))
    replace_rows(spoilt, lambda row: with_image(row, b"no picture"))
    for path in Path(spoilt.root).rglob("*.parquet"):
        STORAGE.write_file(join(s3_root, str(path.relative_to(spoilt.root))), path)
    (line,) = Copy(s3_root, spoilt.manifest).lines()
    assert line.endswith("image is none of JPEG, PNG, BMP, or is damaged")


@pytest.mark.parametrize("with_index", [True, False])
def test_an_id_that_is_there_twice_and_a_group_in_two_folds_are_found(local: Copy, with_index: bool) -> None:
    def copy_first(columns: dict[str, list[Any]]) -> None:
        for name in ("id", "group"):
            columns[name][6] = columns[name][0]

    other = RowGroupReader(local.manifest, STORAGE, local.root).read(0, 0)[0]
    assert other is not None
    replace_rows(local, lambda _: other)
    if with_index:
        change_index(local, copy_first)
    else:
        local.write(local.manifest.index.path, b"")
    lines = local.lines()
    file = "index.parquet" if with_index else "all shards"
    assert f"{file}, id {other.id}: is there 2 times" in lines
    assert f"{file}: group {other.group} is in the folds 0, 1" in lines


def test_byte_ranges_that_overlap_are_refused_with_the_manifest(local: Copy) -> None:
    offsets = list(local.shard.row_groups.offset)
    offsets[2] -= 1
    parts = local.shard.row_groups.model_copy(update={"offset": offsets})
    shards = list(local.manifest.shards)
    shards[1] = local.shard.model_copy(update={"row_groups": parts})
    manifest = local.manifest.model_copy(update={"shards": shards})
    local.write("manifest.json", manifest.model_dump_json().encode())
    with pytest.raises(DataError, match="its parts do not lie one after the other in its bytes"):
        read_manifest(STORAGE, local.root)


@pytest.fixture
def unreadable(local: Copy) -> Iterator[Copy]:
    """The shard is a folder, which no user can read as a file."""
    path = Path(local.root) / local.shard.path
    path.unlink()
    path.mkdir()
    yield local
    shutil.rmtree(path)


def test_a_shard_that_cannot_be_read_does_not_end_it(unreadable: Copy) -> None:
    assert unreadable.lines() == ["is named in the manifest but is not there"]

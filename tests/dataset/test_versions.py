"""A version of a data set stays readable after another has taken its place, as long as it is kept."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segtrain.config import override
from segtrain.dataset import versions
from segtrain.dataset.manifest import Manifest, VersionGoneError, read_manifest, version_name
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.shards import Row
from segtrain.dataset.verify import verify
from segtrain.dataset.versions import prune, replaced_versions
from segtrain.errors import DataError
from segtrain.prediction.tasks import take_inventory, task_reader
from segtrain.prepare.prepare_set import prepare
from segtrain.storage.files import Storage, join
from tests.support.small_sources import assert_whole, draw

STORAGE = Storage()


@pytest.fixture(params=["local", "s3"])
def dest(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "set") if request.param == "local" else request.getfixturevalue("s3_root")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


def make(source: Path, dest: str, shade: int, *overrides: str) -> Manifest:
    """The next version: the same ids with other pictures."""
    return prepare(override(draw(source, shade), list(overrides)), dest, parallel=False)


def holds(dest: str, manifest: Manifest) -> bool:
    """Whether a version is there, all of it."""
    try:
        found = read_manifest(STORAGE, dest, manifest.fingerprint)
    except VersionGoneError:
        return False
    assert found == manifest
    assert verify(STORAGE, dest, found, every_s=1e9, parallel=False) == []
    return True


def test_the_version_before_stays_and_older_ones_go(source: Path, dest: str) -> None:
    made = [make(source, dest, shade) for shade in range(4)]
    assert [holds(dest, one) for one in made] == [False, False, True, True]
    gone, current = made[0].fingerprint, made[3].fingerprint
    with pytest.raises(VersionGoneError, match=rf"has no version {gone} .*; it is {current} now"):
        read_manifest(STORAGE, dest, gone)
    assert_whole(dest, made[3])


def test_more_stay_where_more_are_asked_for_and_none_where_one_is(source: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    made = [make(source, dest, shade, "prepare.keep_versions=3") for shade in range(4)]
    assert [holds(dest, one) for one in made] == [False, True, True, True]
    made.append(make(source, dest, 4, "prepare.keep_versions=1"))
    assert [holds(dest, one) for one in made] == [False, False, False, False, True]
    assert_whole(dest, made[-1])


def test_pictures_that_come_back_are_the_version_that_they_were(source: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    first, second, again = (make(source, dest, shade, "prepare.keep_versions=3") for shade in (0, 1, 0))
    assert again.fingerprint == first.fingerprint
    assert holds(dest, again)
    assert holds(dest, second)
    last = make(source, dest, 2, "prepare.keep_versions=3")
    assert [holds(dest, one) for one in (again, second, last)] == [True, True, True]
    assert_whole(dest, last)


def test_a_set_that_an_older_segtrain_has_made_keeps_its_version_too(source: Path, tmp_path: Path) -> None:
    """It wrote seconds, and no copies."""
    dest = str(tmp_path / "set")
    made = make(source, dest, 0).model_copy(update={"created": "2026-11-27T06:00:00+00:00"})
    STORAGE.write_bytes(join(dest, "manifest.json"), made.model_dump_json().encode())
    assert [version.name for version in replaced_versions(STORAGE, dest)] == []
    make(source, dest, 1)
    assert holds(dest, made)


def test_prune_removes_all_versions_but_the_current_one(source: Path, dest: str) -> None:
    made = [make(source, dest, shade, "prepare.keep_versions=3") for shade in range(3)]
    lines = prune(STORAGE, dest)
    assert [line.split(" of ")[0] for line in lines] == [f"removed version {one.fingerprint}" for one in made[1::-1]]
    assert [holds(dest, one) for one in made] == [False, False, True]
    assert_whole(dest, made[2])
    assert prune(STORAGE, dest) == [f"{dest} has no other version than {made[2].fingerprint}"]


def test_prune_tells_earlier_files_of_the_current_version_from_other_versions(source: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    first, second, again = (make(source, dest, shade, "prepare.keep_versions=3") for shade in (0, 1, 0))
    assert first.fingerprint == again.fingerprint
    assert sorted(line.split(" of ")[0] for line in prune(STORAGE, dest)) == [
        "removed earlier files",
        f"removed version {second.fingerprint}",
    ]
    assert_whole(dest, again)


def test_prune_removes_nothing_but_shards_and_indices(source: Path, tmp_path: Path) -> None:
    """Whatever a manifest from somewhere else names."""
    dest = str(tmp_path / "set")
    make(source, dest, 0)
    made = make(source, dest, 1)
    (version,) = replaced_versions(STORAGE, dest)
    mine = tmp_path / "mine"
    mine.write_text("precious")
    text = STORAGE.read_bytes(join(dest, version.name)).decode().replace(version.manifest.index.path, "../mine")
    STORAGE.write_bytes(join(dest, version.name), text.encode())
    prune(STORAGE, dest)
    assert mine.read_text() == "precious"
    assert holds(dest, made)


def test_a_version_that_is_removed_while_it_is_read_says_so(source: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    first = make(source, dest, 0)
    reader = RowGroupReader(first, STORAGE, dest)
    second = make(source, dest, 1)
    assert None not in reader.read(0, 0)
    prune(STORAGE, dest)
    with pytest.raises(
        DataError, match=rf"version {first.fingerprint} .* was removed while it was read .* on {second.fingerprint}"
    ):
        RowGroupReader(first, STORAGE, dest).read(0, 0)


def test_tasks_read_the_version_that_they_were_made_of(source: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    first = make(source, dest, 0)
    inventory = take_inventory(STORAGE, dest, None)
    make(source, dest, 1)
    assert take_inventory(STORAGE, dest, None, first.fingerprint) == inventory
    newest = take_inventory(STORAGE, dest, None)
    with ThreadPoolExecutor(1) as io:
        read = task_reader(STORAGE, dest, inventory.manifest, io)
        images = {row.id: row.image for task in inventory.tasks() for row in read(task) if isinstance(row, Row)}
        now = task_reader(STORAGE, dest, newest.manifest, io)
        assert images.keys() == inventory.subjects.keys()
        assert not images.items() & {(row.id, row.image) for row in now(newest.tasks()[0]) if isinstance(row, Row)}


def test_a_copy_that_is_damaged_is_passed_over(source: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    STORAGE.write_bytes(join(dest, version_name("0" * 16)), b"{")
    made = make(source, dest, 0)
    assert versions.replaced_versions(STORAGE, dest) == []
    assert holds(dest, made)

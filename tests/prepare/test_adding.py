"""`prepare` into a place that holds a data set: the two become one, and nothing is lost without a word."""

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.config import Recipe, SyntheticSource, override
from segtrain.dataset.manifest import Manifest, Shard, read_index, read_manifest
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.shards import Row
from segtrain.dataset.verify import verify
from segtrain.errors import DataError, UserError
from segtrain.prepare import write_shards
from segtrain.prepare.prepare_set import prepare
from segtrain.prepare.sources.synthetic import draw_cars
from segtrain.prepare.stored_rows import StoredRows
from segtrain.storage.files import Storage
from tests.support.small_sources import save_pair

STORAGE = Storage()
SIZE = (20, 24)


def draw(folder: Path, prefix: str, numbers: range, shade: int = 0) -> Path:
    """Pictures `<prefix><number>` of noise with a box as the mask."""
    for number in numbers:
        rng = np.random.default_rng([number, shade, *prefix.encode()])
        mask = np.zeros(SIZE, np.uint8)
        mask[3 : 4 + number % 15, 2:20] = 255
        save_pair(folder, f"{prefix}{number:02d}", rng.integers(0, 256, (*SIZE, 3), np.uint8), mask)
    return folder


def remove(folder: Path, id: str) -> None:
    for kind in ("images", "masks"):
        (folder / f"{kind}/{id}.png").unlink()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return draw(tmp_path / "base", "p", range(20))


@pytest.fixture
def dest(tmp_path: Path) -> str:
    return str(tmp_path / "set")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """What prepare has said since `said.clear()`."""
    monkeypatch.setattr(logging.getLogger("segtrain"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="segtrain"):
        yield caplog


def recipe(source: Path, *overrides: str) -> Recipe:
    return override(Recipe(), [f"source.path={source}", "prepare.folds=3", *overrides])


def add(source: Path, dest: str, *overrides: str) -> Manifest:
    manifest = prepare(recipe(source, *overrides), dest, parallel=False)
    assert verify(STORAGE, dest, manifest, every_s=1e9, parallel=False) == []
    return manifest


def rows(dest: str) -> dict[str, Row]:
    manifest = read_manifest(STORAGE, dest)
    reader = RowGroupReader(manifest, STORAGE, dest)
    found = {}
    for number, shard in enumerate(manifest.shards):
        for row_group in range(len(shard.row_groups)):
            for row in reader.read(number, row_group):
                assert row is not None
                found[row.id] = row
    return found


def groups(dest: str) -> dict[str, tuple[str, int]]:
    """Id -> group and fold."""
    index = read_index(STORAGE, dest, read_manifest(STORAGE, dest))
    return {one["id"]: (one["group"], one["fold"]) for one in index.select(["id", "group", "fold"]).to_pylist()}


def bytes_of(dest: str) -> dict[str, bytes]:
    return {str(path.relative_to(dest)): path.read_bytes() for path in Path(dest).rglob("*") if path.is_file()}


def test_other_pictures_are_added_and_the_old_ones_stay_bit_for_bit(
    base: Path, dest: str, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    add(base, dest)
    before, places = rows(dest), groups(dest)
    batch = draw(tmp_path / "batch", "q", range(10))
    shutil.rmtree(base)
    assert add(batch, dest).pictures == 30
    after = rows(dest)
    assert {id: after[id] for id in before} == before
    assert {id: groups(dest)[id] for id in before} == places
    for number in range(10):
        assert after[f"q{number:02d}"].image == (batch / f"images/q{number:02d}.png").read_bytes()
    assert "10 pictures new: q00, q01" in said.text
    kept = ", ".join(sorted(before))
    assert f"20 pictures kept, which the source does not have (prepare.remove=true drops them): {kept}\n" in said.text


def test_the_union_of_two_sources_does_not_depend_on_how_it_came_about(base: Path, dest: str, tmp_path: Path) -> None:
    """But for the folds, each of which takes what comes."""
    batch = draw(tmp_path / "batch", "q", range(3))
    add(base, dest)
    union = add(batch, dest)
    both = shutil.copytree(base, tmp_path / "both")
    shutil.copytree(batch, both, dirs_exist_ok=True)
    assert add(both, dest) == union
    other = str(tmp_path / "other")
    add(base, other)
    assert add(both, other).fingerprint == union.fingerprint


def test_the_same_source_again_changes_no_byte(base: Path, dest: str, tmp_path: Path) -> None:
    batch = draw(tmp_path / "batch", "q", range(10))
    for source in (base, base, batch):
        add(source, dest)
    before = bytes_of(dest)
    for source in (batch, base):
        add(source, dest)
        assert bytes_of(dest) == before


def test_a_picture_that_the_source_lost_stays_until_it_is_to_be_removed(
    base: Path, dest: str, said: pytest.LogCaptureFixture
) -> None:
    add(base, dest)
    remove(base, "p07")
    said.clear()
    assert add(base, dest).pictures == 20
    assert "1 picture kept, which the source does not have (prepare.remove=true drops them): p07" in said.text
    said.clear()
    assert add(base, dest, "prepare.remove=true").pictures == 19
    assert "1 picture removed, which the source does not have: p07" in said.text
    assert "p07" not in rows(dest)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_changed_picture_takes_the_place_of_the_old_one_and_is_named(
    base: Path, dest: str, tmp_path: Path, kind: str, said: pytest.LogCaptureFixture
) -> None:
    add(base, dest)
    before, places = rows(dest), groups(dest)
    shutil.copy(base / f"{kind}/p01.png", base / f"{kind}/p05.png")
    said.clear()
    add(base, dest)
    assert "1 picture replaced, whose image or mask is another now: p05" in said.text
    after = rows(dest)
    blob = kind.rstrip("s")
    assert getattr(after["p05"], blob) == getattr(before["p01"], blob) != getattr(before["p05"], blob)
    assert {id: row for id, row in after.items() if id != "p05"} == {i: r for i, r in before.items() if i != "p05"}
    assert groups(dest) == places


def test_another_kind_of_source_needs_a_word(base: Path, dest: str, tmp_path: Path) -> None:
    add(base, dest)
    before = bytes_of(dest)
    draw_cars(SyntheticSource(cars=3, views=2, height=48, width=72), tmp_path / "cars")
    cars = override(Recipe(), ["source.kind=carvana", f"source.path={tmp_path / 'cars'}", "prepare.folds=3"])
    with pytest.raises(UserError, match=r"of kind folder, this one is carvana; .*prepare\.mix=true"):
        prepare(cars, dest)
    assert bytes_of(dest) == before
    mixed = prepare(override(cars, ["prepare.mix=true"]), dest)
    assert (mixed.source, mixed.pictures) == ("carvana+folder", 26)
    assert prepare(cars, dest) == prepare(recipe(base), dest) == mixed


def test_pictures_keep_their_groups_where_runs_of_neighbours_have_moved(
    base: Path, dest: str, said: pytest.LogCaptureFixture
) -> None:
    add(base, dest, "source.group_run=4")
    places = groups(dest)
    draw(base, "p00b", range(2))  # sorted behind p00, so that every run moves
    said.clear()
    add(base, dest, "source.group_run=4")
    after = groups(dest)
    assert {id: after[id] for id in places} == places
    assert after["p00b00"] == after["p00b01"] == places["p00"]
    moved = [
        id for number, id in enumerate(sorted(after)) if id in places and sorted(after)[number // 4 * 4] != after[id][0]
    ]
    assert f"keep their groups and folds, which the source would group otherwise now: {', '.join(moved)}\n" in said.text


def test_new_pictures_go_into_the_fold_of_those_that_they_belong_to(base: Path, dest: str) -> None:
    """Also where their group is called something that the set has not."""
    add(base, dest)
    places = groups(dest)
    draw(base, "x", range(1))
    lines = [f"{id},{'new' if id in ('p03', 'x00') else id}" for id in [*places, "x00"]]
    (base / "groups.csv").write_text("\n".join(["id,group", *lines]))
    add(base, dest, "source.group_csv=groups.csv", "source.group_column=group")
    after = groups(dest)
    assert {id: after[id] for id in places} == places
    assert after["x00"] == ("new", places["p03"][1])


def test_a_bad_pair_that_may_be_left_out_leaves_the_stored_picture_alone(base: Path, dest: str) -> None:
    add(base, dest)
    before = rows(dest)
    (base / "images/p04.png").write_bytes(b"damaged")
    for settings in (["prepare.allow_rejected=1"], ["prepare.allow_rejected=1", "prepare.remove=true"]):
        add(base, dest, *settings)
        assert rows(dest) == before


def damage(dest: str, id: str) -> None:
    """Flip a bit of a stored picture."""
    manifest = read_manifest(STORAGE, dest)
    index = read_index(STORAGE, dest, manifest).to_pylist()
    path = Path(dest) / manifest.shards[next(one["shard"] for one in index if one["id"] == id)].path
    data = bytearray(path.read_bytes())
    data[data.index(rows(dest)[id].image) + 40] ^= 1
    path.write_bytes(data)


def test_a_damaged_picture_is_never_carried_over(base: Path, dest: str, tmp_path: Path) -> None:
    add(base, dest)
    before = rows(dest)
    damage(dest, "p05")
    batch = draw(tmp_path / "batch", "q", range(2))
    with pytest.raises(DataError, match=r"p05 in .*set is damaged and not in the source: the image differs"):
        prepare(recipe(batch), dest, parallel=False)
    add(base, dest)
    assert rows(dest) == before
    damage(dest, "p05")
    assert add(draw(batch, "q", range(9)), dest, "prepare.remove=true").pictures == 9


def test_a_killed_addition_goes_on_where_it_was(
    base: Path, dest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = draw(tmp_path / "batch", "q", range(10))
    undisturbed = str(tmp_path / "undisturbed")
    for source in (base, batch):
        add(source, undisturbed)
    first = add(base, dest)
    write_one, begun = write_shards.write_one, []

    def dying(*args: Any) -> Any:
        begun.append(1)
        if len(begun) > 1:
            raise KilledError
        return write_one(*args)

    with monkeypatch.context() as patched:
        patched.setattr(write_shards, "write_one", dying)
        with pytest.raises(KilledError):
            prepare(recipe(batch), dest, parallel=False)
    assert read_manifest(STORAGE, dest) == first
    read = StoredRows.row_group
    times: Counter[tuple[str, int]] = Counter()

    def counted(rows: StoredRows, shard: Shard, row_group: int) -> Any:
        times[shard.path, row_group] += 1
        return read(rows, shard, row_group)

    monkeypatch.setattr(StoredRows, "row_group", counted)
    second = add(batch, dest)
    assert sum(times.values()) < 20, "what was known is not read again, and one shard was finished"
    assert second.fingerprint == read_manifest(STORAGE, undisturbed).fingerprint
    assert rows(dest) == rows(undisturbed)


class KilledError(Exception):
    """Stands for SIGKILL: nothing is tidied up."""

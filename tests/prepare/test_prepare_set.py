"""Source to data set: complete, repeatable, resumable, and nothing half-written when the user made a mistake."""

import csv
import hashlib
import io
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.config import Recipe, SyntheticSource, override
from segtrain.dataset.manifest import Manifest, read_index, read_manifest, version_name
from segtrain.dataset.reader import RowGroupReader
from segtrain.dataset.shards import Row, unpack_mask
from segtrain.dataset.versions import files_of
from segtrain.errors import UserError
from segtrain.prepare import write_shards
from segtrain.prepare.prepare_set import prepare
from segtrain.prepare.sources.synthetic import draw_cars
from segtrain.storage.files import Storage

SIZE = (20, 24)


def draw(root: Path, numbers: Iterable[int], views: int = 2) -> Path:
    """Pictures `g<group>_<view>` of noise with a box as the mask; the same for the same number."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        rng = np.random.default_rng(number)
        mask = np.zeros(SIZE, np.uint8)
        mask[3 : 4 + number % 15, 2:20] = 255
        name = f"g{number // views:02d}_{number % views}"
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(root / f"images/{name}.jpg")
        Image.fromarray(mask).save(root / f"masks/{name}.png")
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return draw(tmp_path / "source", range(40))


def recipe(source: Path, *overrides: str) -> Recipe:
    settings = [f"source.path={source}", "source.group_regex=^(g[0-9]+)_", "prepare.folds=4"]
    return override(Recipe(), [*settings, *overrides])


def files(root: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of everything below a folder but the manifest, which holds the time."""
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def rows_of(root: str, manifest: Manifest) -> Iterator[Row]:
    reader = RowGroupReader(manifest, Storage(), root)
    for number, shard in enumerate(manifest.shards):
        for row_group in range(len(shard.row_groups)):
            rows = reader.read(number, row_group)
            assert None not in rows
            yield from rows


def fold_of(root: Path) -> dict[str, int]:
    index = read_index(Storage(), str(root), read_manifest(Storage(), str(root)))
    return dict(zip(index["group"].to_pylist(), index["fold"].to_pylist(), strict=True))


def test_every_picture_comes_back_bit_for_bit_with_its_mask(source: Path, tmp_path: Path) -> None:
    manifest = prepare(recipe(source), str(tmp_path / "set"))
    assert read_manifest(Storage(), str(tmp_path / "set")) == manifest
    rows = {row.id: row for row in rows_of(str(tmp_path / "set"), manifest)}
    assert sorted(rows) == sorted(path.stem for path in (source / "images").iterdir())
    for name, row in rows.items():
        assert row.image == (source / f"images/{name}.jpg").read_bytes()
        mask = np.asarray(Image.open(source / f"masks/{name}.png")) > 0
        assert row.mask is not None
        np.testing.assert_array_equal(unpack_mask(row.mask, row.height, row.width), mask)
        assert row.foreground == pytest.approx(mask.mean())
        assert row.group == name[:3]


def test_the_manifest_counts_right(source: Path, tmp_path: Path) -> None:
    manifest = prepare(recipe(source), str(tmp_path / "set"))
    index = read_index(Storage(), str(tmp_path / "set"), manifest)
    assert (manifest.pictures, manifest.labelled, manifest.groups, manifest.source) == (40, 40, 20, "folder")
    assert (manifest.min_height, manifest.max_height, manifest.min_width, manifest.max_width) == (20, 20, 24, 24)
    assert manifest.mean_foreground == pytest.approx(np.mean(index["foreground"].to_numpy()))
    assert [fold.pictures for fold in manifest.folds] == np.bincount(index["fold"].to_numpy()).tolist()
    assert sum(fold.groups for fold in manifest.folds) == 20
    places = list(zip(*(index[name].to_pylist() for name in ("shard", "row_group", "row")), strict=True))
    assert places == sorted(set(places))
    stored = [(row.id, row.group) for row in rows_of(str(tmp_path / "set"), manifest)]
    assert stored == list(zip(index["id"].to_pylist(), index["group"].to_pylist(), strict=True))


def test_no_group_is_in_two_folds(source: Path, tmp_path: Path) -> None:
    manifest = prepare(recipe(source), str(tmp_path / "set"))
    index = read_index(Storage(), str(tmp_path / "set"), manifest)
    pairs = set(zip(index["group"].to_pylist(), index["fold"].to_pylist(), strict=True))
    assert len(pairs) == 20
    assert {shard.fold for shard in manifest.shards} == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["synthetic", "carvana, masks in GIFs", "carvana, masks in a CSV"])
def test_no_car_is_in_two_folds(kind: str, tmp_path: Path) -> None:
    cars = SyntheticSource(path=str(tmp_path / "cars"), cars=5, views=3, height=64, width=96)
    settings = {"kind": "synthetic", "path": cars.path, "cars": 5, "views": 3, "height": 64, "width": 96}
    if kind != "synthetic":
        draw_cars(cars, tmp_path / "cars")
        settings = {"kind": "carvana", "path": cars.path, "masks": "csv" if "CSV" in kind else "gif"}
    recipe = Recipe.from_dict({"source": settings})
    index = read_index(Storage(), str(tmp_path / "set"), prepare(recipe, str(tmp_path / "set"), parallel=False))
    views = list(zip(index["id"].to_pylist(), index["group"].to_pylist(), index["fold"].to_pylist(), strict=True))
    assert len(views) == 15
    assert all(name.startswith(f"{car}_") for name, car, _ in views)
    assert len({(car, fold) for _, car, fold in views}) == 5


def test_small_sets_still_have_many_row_groups(source: Path, tmp_path: Path) -> None:
    few = prepare(recipe(source, "prepare.min_row_groups=10"), str(tmp_path / "few"))
    most = prepare(recipe(source), str(tmp_path / "most"))
    assert 10 <= sum(len(shard.row_groups) for shard in few.shards) < 40
    assert sum(len(shard.row_groups) for shard in most.shards) == 40


def test_row_groups_and_shards_stay_below_their_bytes(source: Path, tmp_path: Path) -> None:
    settings = ("prepare.min_row_groups=1", "prepare.row_group_bytes=6000", "prepare.shard_bytes=9000")
    manifest = prepare(recipe(source, *settings), str(tmp_path / "set"))
    assert all(length <= 6000 for shard in manifest.shards for length in shard.row_groups.length)
    assert max(rows for shard in manifest.shards for rows in shard.row_groups.rows) > 1
    assert len(manifest.shards) > 4


def test_the_same_source_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    first = prepare(recipe(source), str(tmp_path / "a"))
    second = prepare(recipe(source), str(tmp_path / "b"), parallel=False)
    assert first.fingerprint == second.fingerprint
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize(
    "change", ["prepare.seed=1", "prepare.folds=5", "prepare.min_row_groups=10", "source.group_run=2"]
)
def test_other_settings_give_another_fingerprint(source: Path, tmp_path: Path, change: str) -> None:
    first = prepare(recipe(source), str(tmp_path / "a"))
    ungrouped = override(recipe(source), ["source.group_regex=null"]) if "group_run" in change else recipe(source)
    assert prepare(override(ungrouped, [change]), str(tmp_path / "b")).fingerprint != first.fingerprint


def test_groups_keep_their_folds_when_pictures_are_added(source: Path, tmp_path: Path) -> None:
    first = prepare(recipe(source), str(tmp_path / "set"))
    before = fold_of(tmp_path / "set")
    draw(source, range(40, 60))
    second = prepare(recipe(source), str(tmp_path / "set"))
    assert second.pictures == 60
    assert before.items() <= fold_of(tmp_path / "set").items()
    assert second.fingerprint != first.fingerprint
    assert set(files(tmp_path / "set")) == {*files_of([first, second]), version_name(first.fingerprint)}


def test_another_number_of_folds_for_an_existing_set_is_refused(source: Path, tmp_path: Path) -> None:
    prepare(recipe(source), str(tmp_path / "set"))
    before = files(tmp_path / "set")
    with pytest.raises(UserError, match=r"prepare\.folds is 5 but .* has 4 folds"):
        prepare(recipe(source, "prepare.folds=5"), str(tmp_path / "set"))
    assert files(tmp_path / "set") == before


class KilledError(Exception):
    """Stands for SIGKILL: nothing is tidied up."""


def kill_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let `prepare` die before shard number `calls` is written."""
    write_one = write_shards.write_one
    done = []

    def dying(*args: Any) -> Any:
        if len(done) == calls:
            raise KilledError
        done.append(1)
        return write_one(*args)

    monkeypatch.setattr(write_shards, "write_one", dying)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})


def test_a_killed_run_goes_on_where_it_was(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(recipe(source), str(tmp_path / "undisturbed"))
    with monkeypatch.context() as patched:
        kill_after(patched, calls=2)
        with pytest.raises(KilledError):
            prepare(recipe(source), str(tmp_path / "set"))
    shards = list((tmp_path / "set").rglob("part-*.parquet"))
    assert len(shards) == 2
    assert not (tmp_path / "set/manifest.json").exists()
    kept, damaged = shards
    written_ns = kept.stat().st_mtime_ns
    damaged.write_bytes(b"half")
    decoded: list[str] = []
    monkeypatch.setattr("segtrain.prepare.checks.check_pair", lambda picture, *_: decoded.append(picture.id))
    prepare(recipe(source), str(tmp_path / "set"))
    assert decoded == []
    assert kept.stat().st_mtime_ns == written_ns
    assert files(tmp_path / "set") == files(tmp_path / "undisturbed")


def test_a_picture_that_changed_after_the_kill_is_checked_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_after(patched, calls=2)
        with pytest.raises(KilledError):
            prepare(recipe(source), str(tmp_path / "set"))
    shutil.copy(source / "masks/g00_1.png", source / "masks/g00_0.png")
    prepare(recipe(source), str(tmp_path / "set"))
    prepare(recipe(source), str(tmp_path / "fresh"))
    assert files(tmp_path / "set") == files(tmp_path / "fresh")


def test_the_old_set_stays_whole_until_the_new_one_is_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(recipe(source), str(tmp_path / "set"))
    draw(source, range(40, 60))
    with monkeypatch.context() as patched:
        kill_after(patched, calls=2)
        with pytest.raises(KilledError):
            prepare(recipe(source), str(tmp_path / "set"))
    assert read_manifest(Storage(), str(tmp_path / "set")) == first
    assert len(list(rows_of(str(tmp_path / "set"), first))) == 40


def test_a_picture_that_changes_between_checking_and_writing_ends_the_job(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_shards = write_shards.plan_shards

    def meddling(*args: Any) -> Any:
        shutil.copy(source / "images/g00_1.jpg", source / "images/g00_0.jpg")
        return plan_shards(*args)

    monkeypatch.setattr(write_shards, "plan_shards", meddling)
    with pytest.raises(UserError, match=r"g00_0\.jpg changed meanwhile; run the same command again"):
        prepare(recipe(source), str(tmp_path / "set"))
    assert not (tmp_path / "set/manifest.json").exists()
    monkeypatch.undo()
    prepare(recipe(source), str(tmp_path / "set"))
    prepare(recipe(source), str(tmp_path / "fresh"))
    assert files(tmp_path / "set") == files(tmp_path / "fresh")


def spoil_size(source: Path) -> None:
    Image.new("L", (5, 5)).save(source / "masks/g03_0.png")


def spoil_values(source: Path) -> None:
    Image.fromarray(np.arange(480, dtype=np.uint16).astype(np.uint8).reshape(SIZE)).save(source / "masks/g03_0.png")


def spoil_jpeg(source: Path) -> None:
    path = source / "images/g03_0.jpg"
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_size, r"masks/g03_0\.png: image is 24x20 and mask 5x5"),
        (spoil_values, r"masks/g03_0\.png: mask has 256 values"),
        (spoil_jpeg, r"images/g03_0\.jpg: image (is truncated|cannot be decoded)"),
    ],
)
def test_a_bad_pair_fails_the_job_and_leaves_only_the_list(
    source: Path, tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(source)
    with pytest.raises(UserError, match=rf"1 bad pair .*{reason}.*prepare\.allow_rejected=1"):
        prepare(recipe(source), str(tmp_path / "set"))
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["rejected.csv"]
    (line,) = csv.DictReader(io.StringIO((tmp_path / "set/rejected.csv").read_text()))
    assert (line["id"], line["mask"]) == ("g03_0", f"{source}/masks/g03_0.png")


def test_where_no_pair_is_good_nobody_is_told_to_leave_them_out(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no group.* No pair of the source is good: mend them$"):
        prepare(recipe(source, "source.group_regex=x?"), str(tmp_path / "set"))


def test_allowed_bad_pairs_are_left_out_listed_and_counted(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil_jpeg(source)
    spoil_size(source)
    Image.new("L", (5, 5)).save(source / "masks/g07_1.png")
    with caplog.at_level(logging.INFO, logger="segtrain"), pytest.MonkeyPatch.context() as patched:
        patched.setattr(logging.getLogger("segtrain"), "propagate", True)
        manifest = prepare(recipe(source, "prepare.allow_rejected=2"), str(tmp_path / "set"))
    assert manifest.pictures == 38
    assert "left out 2 bad pairs" in caplog.text
    lines = list(csv.DictReader(io.StringIO((tmp_path / "set/rejected.csv").read_text())))
    assert [line["id"] for line in lines] == ["g03_0", "g07_1"]
    assert {row.id for row in rows_of(str(tmp_path / "set"), manifest)}.isdisjoint({"g03_0", "g07_1"})


def test_a_failed_addition_leaves_the_old_set_as_it_was(source: Path, tmp_path: Path) -> None:
    first = prepare(recipe(source), str(tmp_path / "set"))
    before = files(tmp_path / "set")
    draw(source, range(40, 44))
    spoil_values(source)
    with pytest.raises(UserError, match="1 bad pair"):
        prepare(recipe(source), str(tmp_path / "set"))
    after = files(tmp_path / "set")
    assert after.pop("rejected.csv")
    assert after == before
    assert read_manifest(Storage(), str(tmp_path / "set")) == first


def test_a_picture_without_a_group_is_a_bad_pair(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 bad pairs .*g00_0\.jpg: has no group"):
        prepare(recipe(source, "source.group_regex=^(g[0-9]*[1-9][0-9]*)_"), str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("images/lonely.jpg", "has no mask"), ("masks/lonely.png", "has no image"), ("images/g00_0.png", "the same id")],
)
def test_a_wrong_source_leaves_nothing_behind(source: Path, tmp_path: Path, name: str, message: str) -> None:
    (source / name).touch()
    with pytest.raises(UserError, match=message):
        prepare(recipe(source), str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_too_few_groups_leave_nothing_behind(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are only 20 groups"):
        prepare(recipe(source, "prepare.folds=21"), str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_a_destination_that_is_a_file_or_holds_a_strange_manifest_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file; name a folder"):
        prepare(recipe(source), str(tmp_path / "file"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/manifest.json").write_text('{"format_version": 7}')
    with pytest.raises(UserError, match=r"format_version 7.*delete .*set first"):
        prepare(recipe(source), str(tmp_path / "set"))


def test_the_same_picture_in_two_groups_is_reported(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(source / "images/g00_0.jpg", source / "images/g09_1.jpg")
    shutil.copy(source / "images/g05_0.jpg", source / "images/g05_1.jpg")  # within one group there is no leak
    with caplog.at_level(logging.INFO, logger="segtrain"), pytest.MonkeyPatch.context() as patched:
        patched.setattr(logging.getLogger("segtrain"), "propagate", True)
        prepare(recipe(source), str(tmp_path / "set"))
    assert "g00_0 (group g00) = g09_1 (group g09)" in caplog.text
    lines = list(csv.DictReader(io.StringIO((tmp_path / "set/duplicates.csv").read_text())))
    assert [(line["id"], line["group"]) for line in lines] == [("g00_0", "g00"), ("g09_1", "g09")]


def test_synthetic_cars_need_no_folder(tmp_path: Path) -> None:
    settings = ["source.kind=synthetic", "source.cars=3", "source.views=2", "source.height=48", "source.width=72"]
    manifest = prepare(override(Recipe(), [*settings, "prepare.folds=3"]), str(tmp_path / "set"))
    assert (manifest.source, manifest.pictures, manifest.groups) == ("synthetic", 6, 3)
    with pytest.raises(UserError, match=r"source\.path: synthetic pictures are drawn into a local folder"):
        prepare(override(Recipe(), [*settings, "source.path=s3://bucket/x"]), str(tmp_path / "other"))


def test_gifs_and_run_lengths_of_one_source_give_the_same_rows(tmp_path: Path) -> None:
    settings = ["source.kind=synthetic", "source.cars=2", "source.views=2", "source.height=48", "source.width=72"]
    drawn = override(Recipe(), [*settings, f"source.path={tmp_path / 'raw'}", "prepare.folds=2"])
    first = prepare(drawn, str(tmp_path / "drawn"))
    for masks in ("gif", "csv"):
        carvana = ["source.kind=carvana", f"source.path={tmp_path / 'raw'}", f"source.masks={masks}", "prepare.folds=2"]
        assert prepare(override(Recipe(), carvana), str(tmp_path / masks)).fingerprint == first.fingerprint


def test_small_sets_do_not_start_ray(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    prepare(recipe(source), str(tmp_path / "set"))


@pytest.mark.ray
def test_ray_tasks_give_the_same_bytes_and_the_same_errors(
    source: Path, tmp_path: Path, ray_session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(recipe(source), str(tmp_path / "threads"))
    monkeypatch.setattr("segtrain.cluster.fan_out.RAY_FROM_PICTURES", 1)
    prepare(recipe(source), str(tmp_path / "ray"))
    assert files(tmp_path / "ray") == files(tmp_path / "threads")

    spoil_size(source)
    with pytest.raises(UserError, match="1 bad pair"):
        prepare(recipe(source), str(tmp_path / "bad"))

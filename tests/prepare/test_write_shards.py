"""How checked pictures are laid out over shards."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.config import PrepareConfig
from segtrain.dataset.manifest import Shard
from segtrain.errors import UserError
from segtrain.prepare.checks import check_chunk
from segtrain.prepare.pairs import Checked
from segtrain.prepare.sources import Picture
from segtrain.prepare.union import Pair
from segtrain.prepare.write_shards import (
    ShardPlan,
    fingerprint,
    fold_facts,
    index_table,
    load_finished,
    plan_shards,
    without_token,
    write_one,
)
from segtrain.storage.files import Storage

FOLDS = {f"g{number}": number % 3 for number in range(7)}
CONFIG = PrepareConfig(folds=3, row_group_bytes=4096, shard_bytes=9000, min_row_groups=1)


def make_pairs(count: int = 60) -> list[Pair]:
    return [
        Pair(
            Picture(f"p{number:03d}", f"g{number % 7}", "image", mask="mask"),
            Checked(f"p{number:03d}", 6, 8, 1, 0.25 * (number % 3), 700, number, f"digest{number}", 50, number, 0),
        )
        for number in range(count)
    ]


def test_the_plan_depends_on_contents_and_settings_alone() -> None:
    pairs = make_pairs()
    plans = plan_shards(pairs, FOLDS, CONFIG, "token")
    assert plan_shards(pairs[::-1], FOLDS, CONFIG, "token") == plans
    assert fingerprint(plan_shards(pairs[::-1], FOLDS, CONFIG, "token")) == fingerprint(plans)
    assert len(fingerprint(plans)) == 16


def test_any_change_of_contents_changes_the_fingerprint_and_the_names_of_its_shards() -> None:
    pairs = make_pairs()
    plans = plan_shards(pairs, FOLDS, CONFIG, "token")
    for name, value in (("mask_crc32c", 99), ("image_digest", "other")):
        changed = [
            *pairs[:-1],
            dataclasses.replace(pairs[-1], checked=dataclasses.replace(pairs[-1].checked, **{name: value})),
        ]
        after = plan_shards(changed, FOLDS, CONFIG, "token")
        assert fingerprint(after) != fingerprint(plans)
        before_paths, after_paths = ({plan.path for plan in these} for these in (plans, after))
        assert len(before_paths - after_paths) == 1


def test_every_pair_is_in_one_place_of_its_own_fold() -> None:
    pairs = make_pairs()
    plans = plan_shards(pairs, FOLDS, CONFIG, "token")
    placed = [(pair, plan.fold) for plan in plans for group in plan.row_groups for pair in group]
    assert all(FOLDS[pair.picture.group] == fold for pair, fold in placed)
    assert sorted(pair.picture.id for pair, _ in placed) == [pair.picture.id for pair in pairs]
    assert len({plan.path for plan in plans}) == len(plans) > 3
    assert plans[0].path.startswith("fold=0/part-00000-")


def test_the_token_is_in_every_name_and_nothing_else_changes_with_it() -> None:
    pairs = make_pairs()
    one, other = (plan_shards(pairs, FOLDS, CONFIG, token) for token in ("one", "other"))
    assert not {plan.path for plan in one} & {plan.path for plan in other}
    assert [without_token(plan.path) for plan in one] == [without_token(plan.path) for plan in other]
    assert fingerprint(one) == fingerprint(other)


@pytest.fixture
def plan(tmp_path: Path) -> ShardPlan:
    """A shard of two pictures whose masks the check has kept in `tmp_path/kept`."""
    pictures = []
    for name in "ab":
        Image.new("RGB", (8, 6), (200, 10, 3)).save(tmp_path / f"{name}.png")
        Image.fromarray(np.eye(6, 8, dtype=np.uint8) * 255).save(tmp_path / f"{name}.gif")
        pictures.append(Picture(name, "g", str(tmp_path / f"{name}.png"), mask=str(tmp_path / f"{name}.gif")))
    found = check_chunk(Storage(), pictures, {}, str(tmp_path / "kept"))
    pairs = [Pair(picture, checked) for picture, checked in zip(pictures, found.good, strict=True)]
    return ShardPlan("fold=0/part-00000-content-token.parquet", 0, [[pair] for pair in pairs])


def write(plan: ShardPlan, root: Path, finished: Shard | None = None) -> Shard:
    return write_one(Storage(), str(root), plan, finished, str(root / "kept"))


def test_masks_are_not_decoded_again_while_the_kept_ones_hold(plan: ShardPlan, tmp_path: Path) -> None:
    (kept,) = (tmp_path / "kept").glob("masks-*")
    for mask in tmp_path.glob("*.gif"):
        mask.rename(mask.with_suffix(".away"))
    first = write(plan, tmp_path)
    for mask in tmp_path.glob("*.away"):
        mask.rename(mask.with_suffix(".gif"))
    for damage in (lambda: kept.write_bytes(b"?" * kept.stat().st_size), lambda: kept.write_bytes(b""), kept.unlink):
        damage()
        assert write(plan, tmp_path) == first


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda root: (root / "a.png").write_bytes(b"other"), r"a\.png changed meanwhile; run the same command again"),
        (lambda root: (root / "a.png").unlink(), r"a: .*a\.png is not there any more; run"),
        (lambda root: (root / "a.gif").write_bytes(b"other"), r"a: mask is none of PNG, GIF, BMP, JPEG.*; run"),
        (lambda root: Image.new("L", (8, 6)).save(root / "a.gif"), r"the mask of .*a\.png changed meanwhile; run"),
    ],
)
def test_a_file_that_changed_since_it_was_checked_ends_the_job(
    plan: ShardPlan, tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    shutil.rmtree(tmp_path / "kept")
    change(tmp_path)
    with pytest.raises(UserError, match=reason):
        write(plan, tmp_path)
    assert not (tmp_path / plan.path).exists()


def test_a_finished_shard_is_taken_under_the_name_that_it_has(plan: ShardPlan, tmp_path: Path) -> None:
    first = write(plan, tmp_path)
    assert load_finished(Storage(), str(tmp_path / "kept")) == [first]
    other = dataclasses.replace(plan, path="fold=0/part-00000-content-other.parquet")
    assert write(other, tmp_path, first) == first
    assert not (tmp_path / other.path).exists()
    stored = tmp_path / plan.path
    for damaged in (stored.read_bytes()[:-1], b"?" + stored.read_bytes()[1:]):
        stored.write_bytes(damaged)
        assert write(other, tmp_path, first) == first.model_copy(update={"path": other.path})
        assert stored.read_bytes() == damaged


def test_the_index_has_a_row_for_each_picture_in_stored_order() -> None:
    plans = plan_shards(make_pairs(), FOLDS, CONFIG, "token")
    index = index_table(plans)
    assert index["id"].to_pylist() == [pair.picture.id for plan in plans for group in plan.row_groups for pair in group]
    assert index["shard"].to_pylist() == sorted(index["shard"].to_pylist())


def test_the_fold_table_adds_up() -> None:
    facts = fold_facts(plan_shards(make_pairs(), FOLDS, CONFIG, "token"), 3)
    assert [fold.pictures for fold in facts] == [26, 17, 17]
    assert [fold.groups for fold in facts] == [3, 2, 2]
    assert all(0.2 < fold.foreground < 0.3 for fold in facts)

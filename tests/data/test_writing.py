"""How checked pictures are laid out over shards."""

import dataclasses

from segtrain.config import PrepareConfig
from segtrain.data.pairs import Checked
from segtrain.data.sources import Picture
from segtrain.data.writing import Pair, fingerprint, fold_facts, index_table, plan_shards

CONFIG = PrepareConfig(folds=3, row_group_bytes=4096, shard_bytes=9000, min_row_groups=1)


def make_pairs(count: int = 60) -> list[Pair]:
    return [
        Pair(
            Picture(f"p{number:03d}", f"g{number % 7}", "image", mask="mask"),
            Checked(f"p{number:03d}", 6, 8, 1, 0.25 * (number % 3), 700, number, f"digest{number}", 50, number, 0),
            number % 7 % 3,
        )
        for number in range(count)
    ]


def test_the_plan_depends_on_contents_and_settings_alone() -> None:
    pairs = make_pairs()
    plans = plan_shards(pairs, CONFIG)
    assert plan_shards(pairs[::-1], CONFIG) == plans
    assert fingerprint(plan_shards(pairs[::-1], CONFIG)) == fingerprint(plans)
    assert len(fingerprint(plans)) == 16


def test_any_change_of_contents_changes_the_fingerprint_and_the_names_of_its_shards() -> None:
    pairs = make_pairs()
    plans = plan_shards(pairs, CONFIG)
    for name, value in (("mask_crc32c", 99), ("image_digest", "other")):
        changed = [
            *pairs[:-1],
            dataclasses.replace(pairs[-1], checked=dataclasses.replace(pairs[-1].checked, **{name: value})),
        ]
        after = plan_shards(changed, CONFIG)
        assert fingerprint(after) != fingerprint(plans)
        before_paths, after_paths = ({plan.path for plan in these} for these in (plans, after))
        assert len(before_paths - after_paths) == 1


def test_every_pair_is_in_one_place_of_its_own_fold() -> None:
    pairs = make_pairs()
    plans = plan_shards(pairs, CONFIG)
    placed = [(pair, plan.fold) for plan in plans for group in plan.row_groups for pair in group]
    assert all(pair.fold == fold for pair, fold in placed)
    assert sorted(pair.picture.id for pair, _ in placed) == [pair.picture.id for pair in pairs]
    assert len({plan.path for plan in plans}) == len(plans) > 3
    assert plans[0].path.startswith("fold=0/part-00000-")


def test_the_index_has_a_row_for_each_picture_in_stored_order() -> None:
    plans = plan_shards(make_pairs(), CONFIG)
    index = index_table(plans)
    assert index["id"].to_pylist() == [pair.picture.id for plan in plans for group in plan.row_groups for pair in group]
    assert index["shard"].to_pylist() == sorted(index["shard"].to_pylist())


def test_the_fold_table_adds_up() -> None:
    facts = fold_facts(make_pairs(), 3)
    assert [fold.pictures for fold in facts] == [26, 17, 17]
    assert [fold.groups for fold in facts] == [3, 2, 2]
    assert all(0.2 < fold.foreground < 0.3 for fold in facts)

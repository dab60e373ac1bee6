"""Folds by group: balanced, stable, and never tearing a group apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.errors import UserError
from segtrain.prepare.assign_folds import assign_folds


def random_groups(count: int, seed: int = 0, prefix: str = "g") -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {f"{prefix}{i}": [rng.uniform(0.09, 0.41)] * 16 for i in range(count)}


def test_pictures_and_foreground_are_balanced() -> None:
    groups = random_groups(318)
    folds = assign_folds(groups, 5)
    pictures = [sum(len(groups[name]) for name in groups if folds[name] == fold) for fold in range(5)]
    mass = [sum(sum(groups[name]) for name in groups if folds[name] == fold) for fold in range(5)]
    assert max(pictures) - min(pictures) <= 32
    means = np.divide(mass, pictures)
    assert means.max() - means.min() < 0.01


def test_the_order_of_the_groups_does_not_matter() -> None:
    groups = random_groups(40)
    assert assign_folds(dict(reversed(groups.items())), 4) == assign_folds(groups, 4)


def test_the_seed_decides_between_equal_groups() -> None:
    groups = {f"g{i}": [0.2] for i in range(20)}
    assert assign_folds(groups, 4, seed=1) == assign_folds(groups, 4, seed=1)
    assert assign_folds(groups, 4, seed=1) != assign_folds(groups, 4, seed=2)


@given(st.integers(5, 40), st.integers(0, 40), st.integers(0, 99))
def test_a_group_keeps_its_fold_when_others_are_added(before: int, added: int, seed: int) -> None:
    groups = random_groups(before, seed)
    first = assign_folds(groups, 5, seed=seed)
    second = assign_folds(groups | random_groups(added, seed + 1, "new"), 5, seed=seed, kept=first)
    assert {name: second[name] for name in groups} == first
    assert set(second.values()) == set(range(5))


def test_new_groups_go_where_most_is_missing() -> None:
    kept = {"a": 0, "b": 0, "c": 1}
    groups = dict.fromkeys(["a", "b", "c", "new"], [0.25] * 8)
    assert assign_folds(groups, 2, kept=kept)["new"] == 1


def test_masks_that_are_all_empty_still_give_folds() -> None:
    folds = assign_folds({f"g{i}": [0.0] for i in range(10)}, 5)
    assert sorted(folds.values()) == sorted([0, 1, 2, 3, 4] * 2)


def test_more_folds_than_groups_are_refused() -> None:
    with pytest.raises(UserError, match=r"prepare\.folds is 5 but there are only 3 groups"):
        assign_folds(random_groups(3), 5)


def test_a_fold_that_lost_all_its_groups_is_refused() -> None:
    with pytest.raises(UserError, match="fold 1 would have no pictures"):
        assign_folds(random_groups(3), 2, kept={"g0": 0, "g1": 0, "g2": 0, "gone": 1})


def test_one_group_alone_is_not_advised_to_be_one_fold() -> None:
    with pytest.raises(UserError, match=r"all pictures are of one group.*group the pictures more finely") as refused:
        assign_folds({"car": [1 / 9] * 9}, 5)
    assert "set prepare.folds" not in str(refused.value)

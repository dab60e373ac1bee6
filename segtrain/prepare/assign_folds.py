"""Folds: which group goes where. A group is never torn apart, and keeps its fold when pictures are added."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from segtrain.errors import UserError


def assign_folds(
    groups: Mapping[str, Sequence[float]], folds: int, *, seed: int = 0, kept: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Fold of each group, 0 to `folds - 1`, balanced by number of pictures and by foreground.

    `groups` has, for each of a group's pictures, the fraction of object pixels.
    Groups named in `kept` stay in that fold. The others are placed one by one, the heaviest first, each where it adds
    least to the sum of squares of the folds' shares of pictures and of foreground: where most is missing. `seed`
    decides between equally heavy groups. The result does not depend on the order of `groups`.

    Raises `UserError` where there are fewer groups than folds, or a fold would stay empty.
    """
    if len(groups) < folds:
        raise UserError(_too_few(len(groups), folds))
    assigned = {group: fold for group, fold in (kept or {}).items() if group in groups}
    weights = {group: np.array([len(shares), math.fsum(shares)]) for group, shares in groups.items()}
    total = np.maximum(np.array([*weights.values()]).sum(axis=0), 1e-12)
    share = {group: weight / total for group, weight in weights.items()}
    load = np.zeros((folds, 2))
    for group in sorted(assigned):
        load[assigned[group]] += share[group]
    for group in _heaviest_first([group for group in sorted(groups) if group not in assigned], share, seed):
        added = (share[group] * (2 * load + share[group])).sum(axis=1)  # (load + share)^2 - load^2
        assigned[group] = int(np.argmin(added))
        load[assigned[group]] += share[group]
    empty = sorted(set(range(folds)) - set(assigned.values()))
    if empty:
        raise UserError(
            f"fold {empty[0]} would have no pictures, because the groups in the data set keep their folds; "
            "add pictures of new groups or prepare into another folder"
        )
    return {group: assigned[group] for group in sorted(groups)}


def _too_few(groups: int, folds: int) -> str:
    finer = "group the pictures more finely (source.group_regex, group_csv or group_run)"
    if groups < 2:
        return f"all pictures are of one group, which is never torn apart, and at least two folds are needed; {finer}"
    return (
        f"prepare.folds is {folds} but there are only {groups} groups, and a group is never torn apart; "
        f"set prepare.folds to at most {groups} or {finer}"
    )


def _heaviest_first(groups: list[str], share: Mapping[str, np.ndarray], seed: int) -> list[str]:
    shuffled = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    return sorted(shuffled, key=lambda group: -float((share[group] ** 2).sum()))

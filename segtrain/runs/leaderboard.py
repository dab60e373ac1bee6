"""What a sweep comes to: its trials in order, the Pareto front, the best recipe, how much each axis matters.

Pure functions of `segtrain.runs.trials.Trial`; they read and write nothing.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segtrain.config import Axis, CosineSchedule, Recipe
from segtrain.runs.trials import Trial
from segtrain.storage.csv_cells import csv_bytes
from segtrain.storage.files import is_remote, join

LEADERBOARD_NAME = "leaderboard.csv"
BEST_NAME = "best.yaml"
FACTS = ("rank", "trial", "status", "dice", "best_epoch", "epochs", "gpu_s", "parameters", "images_per_s")
FEWEST_TRIALS = 4
"""Of fewer trials `importance` says nothing."""
DRAWS = 200
"""Of half of the trials, to say how sure an importance is."""


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that have a dice, best first; of equal ones that of fewer GPU-seconds, then the earlier.

    Those that failed come last: to train the first one again must not fail.
    """
    scored = [trial for trial in trials if trial.dice is not None]
    return sorted(scored, key=lambda trial: (trial.status == "failed", -_dice(trial), trial.gpu_s, trial.number))


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats, by GPU-seconds, and so by dice, ascending.

    One beats another that has no more dice for no fewer GPU-seconds, unless they are equal in both.
    """
    front: list[Trial] = []
    cheapest_first = sorted(ranked(trials), key=lambda trial: trial.gpu_s)  # stable: of one cost, the best dice first
    for trial in cheapest_first:
        last = front[-1] if front else None
        if last is None or _dice(trial) > _dice(last) or (trial.dice, trial.gpu_s) == (last.dice, last.gpu_s):
            front.append(trial)
    return front


def to_csv(trials: Sequence[Trial], axes: Sequence[str]) -> str:
    """Every trial as a row: ranked ones first, then those without a dice by number.

    After the facts comes a column for each of `axes`: text as it is (quoted where a spreadsheet would take it for a
    formula), every other value as JSON, and nothing where the axis does not apply. What is not known (a rank without a
    dice, the speed of a trial that never ran) is empty.
    """
    order = ranked(trials)
    unranked = sorted((trial for trial in trials if trial.dice is None), key=lambda trial: trial.number)
    front = {trial.number for trial in pareto(trials)}
    rows = (
        [
            rank if trial.dice is not None else "",
            trial.number,
            trial.status,
            "" if trial.dice is None else f"{trial.dice:.6f}",
            trial.best_epoch or "",
            trial.epochs,
            f"{trial.gpu_s:.1f}" if trial.history else "",
            trial.parameters or "",
            f"{trial.images_per_s:.1f}" if trial.history else "",
            trial.memory_bytes or "",
            "yes" if trial.number in front else "",
            *(_plain(trial.point[axis]) if axis in trial.point else "" for axis in axes),
            trial.reason,
        ]
        for rank, trial in enumerate([*order, *unranked], start=1)
    )
    return csv_bytes([*FACTS, "memory_bytes", "pareto", *axes, "reason"], rows).decode()


def best_recipe(recipe: Recipe, trial: Trial, *, name: str, storage: str) -> Recipe:
    """The recipe of a run that does again what `trial` did, and ends where it ended.

    `recipe` is the trial's own, as resolved in its folder; `trial` has trained for at least an epoch. The run goes on
    for as many epochs as the trial did, on the cosine that the trial was on, and is called `<storage>/<name>`.
    """
    values: dict[str, Any] = {"train.epochs": trial.epochs, "tune": {}, "run.name": name, "run.storage": storage}
    if isinstance(recipe.schedule, CosineSchedule) and recipe.schedule.horizon_epochs is None:
        values["schedule.horizon_epochs"] = recipe.train.epochs
    return recipe.updated(values)


def best_yaml(recipe: Recipe, trial: Trial, sweep: str, *, name: str, storage: str) -> str:
    """`best.yaml` of the sweep in the folder `sweep`: `best_recipe` below a few lines on what it is."""
    again = best_recipe(recipe, trial, name=name, storage=storage)
    # jobs/train.py reads recipes from this machine only.
    path = BEST_NAME if is_remote(sweep) else join(sweep, BEST_NAME)
    header = [
        f"Trial {trial.number} of the sweep {sweep}, its best: hard dice {_dice(trial):.4f} at original resolution on "
        f"fold {recipe.data.fold},",
        f"in epoch {trial.best_epoch} of the {trial.epochs} that it trained for (train.epochs was "
        f"{recipe.train.epochs}). This trains it again:",
        "",
        f"  python jobs/train.py {shlex.quote(path)}",
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in header) + again.to_yaml()


class Importance(NamedTuple):
    """How much one axis has to do with a trial's dice."""

    share: float
    """Of what all axes explain; the shares of all axes sum to 1."""
    low: float
    high: float
    """Eight of ten draws of half of the trials give a share between these two."""

    @property
    def label(self) -> str:
        """`55 % (20 to 80 %)`."""
        share, low, high = (f"{100 * part:.0f}" for part in self)
        return f"{share} % ({low} to {high} %)"


def importance(trials: Sequence[Trial], space: Mapping[str, Axis]) -> dict[str, Importance]:
    """How much each axis has to do with a trial's dice, the largest share first.

    - The trials that finished, or were stopped for their score, are ranked by dice, so that one that diverged counts no
      more than any bad one.
    - An axis explains the part of the ranks' variance that lies between its values (thirds of the trials for a range),
      less what as many values would explain by chance (Kelley's epsilon squared). Effects of several axes together are
      left out.
    - An axis that applies only sometimes is judged among the trials that it applies to. Whether it applies counts for
      the axis that it depends on.

    Empty with fewer than `FEWEST_TRIALS` trials, and if no axis explains more than chance. tests/bench/importance.py
    compares this with Optuna's PED-ANOVA and fANOVA on sweeps whose effects are known.
    """
    judged = [trial for trial in ranked(trials) if trial.status in ("finished", "stopped") and trial.is_over]
    if len(judged) < FEWEST_TRIALS:
        return {}
    dice = np.array([trial.dice for trial in judged])
    order = np.sort(dice)
    # Equal dice share the mean of their ranks.
    ranks = (np.searchsorted(order, dice) + np.searchsorted(order, dice, side="right")) / 2
    axes = [axis for axis in space if any(axis in trial.point for trial in judged)]
    groups = [_groups(axis, space[axis], judged) for axis in axes]
    shares = _shares(groups, ranks)
    if not shares.any():
        return {}
    random = np.random.default_rng(0)
    halves = [random.permutation(len(judged))[: len(judged) // 2] for _ in range(DRAWS)]
    drawn = [_shares([of[half] for of in groups], ranks[half]) for half in halves]
    low, high = np.quantile(drawn, (0.1, 0.9), axis=0)
    parts = np.stack([shares, np.minimum(low, shares), np.maximum(high, shares)], axis=1).tolist()
    found = {axis: Importance(*part) for axis, part in zip(axes, parts, strict=True)}
    return dict(sorted(found.items(), key=lambda one: -one[1].share))


def tells_apart(found: Mapping[str, Importance]) -> bool:
    """Whether some axis surely matters more than another one; a single axis, whether it surely matters."""
    first, *others = sorted(found.values(), key=lambda one: -one.low)
    return first.low > min((one.high for one in others), default=0.0)


def _groups(name: str, axis: Axis, trials: Sequence[Trial]) -> NDArray[np.intp]:
    """For each trial the group that its value is in: that of a choice, or a third of a range's values.

    -1 where the axis does not apply.
    """
    applies = np.array([name in trial.point for trial in trials])
    values = [trial.point[name] for trial in trials if name in trial.point]
    groups = np.full(len(trials), -1)
    if axis.values is not None:
        groups[applies] = np.unique([json.dumps(value) for value in values], return_inverse=True)[1]
    else:
        cuts = np.sort(values)[[len(values) // 3, 2 * len(values) // 3]]
        groups[applies] = np.searchsorted(cuts, values, side="right")
    return groups


def _shares(groups: Sequence[NDArray[np.intp]], ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of each axis; all are 0 where none explains more than chance."""
    explained = np.array([_explained(of[of >= 0], ranks[of >= 0]) for of in groups])
    return explained / (explained.sum() or 1.0)


def _explained(groups: NDArray[np.intp], ranks: NDArray[np.float64]) -> float:
    """The sum of squares between groups, less what chance would put there; never below 0."""
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    free = len(ranks) - len(sizes)
    if not free:
        return 0.0  # each trial has a value of its own: there is nothing to compare chance with
    apart = ranks - ranks.mean()
    between = float((np.bincount(members, apart) ** 2 / sizes).sum())
    within = float((apart**2).sum()) - between
    return max(0.0, between - (len(sizes) - 1) * within / free)


def _dice(trial: Trial) -> float:
    """Of a trial that has one."""
    assert trial.dice is not None
    return trial.dice


def _plain(value: Any) -> object:
    """Text and numbers as they are, all else as JSON."""
    return value if type(value) in (str, int, float) else json.dumps(value)

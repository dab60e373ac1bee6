"""What a sweep comes to: its trials in order, the Pareto front, the best recipe, how much each axis matters.

Pure functions of `segtrain.runs.trials.Trial`; they read and write nothing.
"""

import csv
import io
import json
import shlex
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from segtrain.config import Axis, CosineSchedule, Recipe
from segtrain.runs.trials import Trial
from segtrain.storage.csv_cells import cell
from segtrain.storage.files import is_remote, join

LEADERBOARD_NAME = "leaderboard.csv"
BEST_NAME = "best.yaml"
FACTS = ("rank", "trial", "status", "dice", "best_epoch", "epochs", "gpu_s", "parameters", "images_per_s")
FEWEST_TRIALS = 4
"""Of fewer trials `importance` says nothing."""


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
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*FACTS, "memory_bytes", "pareto", *map(cell, axes), "reason"])
    for rank, trial in enumerate([*order, *unranked], start=1):
        rows.writerow(
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
                *(_cell(trial.point[axis]) if axis in trial.point else "" for axis in axes),
                cell(trial.reason),
            ]
        )
    return text.getvalue()


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


def importance(trials: Sequence[Trial], space: Mapping[str, Axis]) -> dict[str, float]:
    """How much each axis has to do with a trial's dice: shares that sum to 1, the largest first.

    The trials that finished, or were stopped for their score, are ranked by dice, so that one that diverged counts no
    more than any bad one. An axis explains the part of the ranks' variance that lies between its values (thirds of the
    trials for a range), less what as many values would explain by chance (Kelley's epsilon squared); effects of several
    axes together are nobody's. An axis that applies only sometimes is judged among the trials that it applies to;
    whether it applies is the merit of the axis it depends on.
    Empty with fewer than `FEWEST_TRIALS` trials, and where no axis explains more than chance.
    """
    judged = [trial for trial in ranked(trials) if trial.status in ("finished", "stopped") and trial.is_over]
    if len(judged) < FEWEST_TRIALS:
        return {}
    order = sorted(_dice(trial) for trial in judged)
    # Equal dice share the mean of their ranks.
    ranks = [(bisect_left(order, _dice(trial)) + bisect_right(order, _dice(trial))) / 2 for trial in judged]
    explained = {}
    for axis, config in space.items():
        applying = [(trial.point[axis], rank) for trial, rank in zip(judged, ranks, strict=True) if axis in trial.point]
        if applying:
            values, of_these = zip(*applying, strict=True)
            explained[axis] = _explained(_groups(config, values), of_these)
    total = sum(explained.values())
    if not total:
        return {}
    return {axis: part / total for axis, part in sorted(explained.items(), key=lambda one: -one[1])}


def _groups(config: Axis, values: Sequence[Any]) -> list[str | int]:
    """For each value of an axis the group it is in: a choice itself, or a third of a range's values."""
    if config.values is not None:
        return [json.dumps(value) for value in values]
    order = sorted(values)
    cuts = (order[len(order) // 3], order[2 * len(order) // 3])
    return [bisect_right(cuts, value) for value in values]


def _explained(groups: Sequence[str | int], ranks: Sequence[float]) -> float:
    """The sum of squares between groups, less what chance would put there; never below 0."""
    members: dict[str | int, list[float]] = {}
    for group, rank in zip(groups, ranks, strict=True):
        members.setdefault(group, []).append(rank)
    free = len(ranks) - len(members)
    if not free:
        return 0.0  # each trial has a value of its own: there is nothing to compare chance with
    mean = fmean(ranks)
    between = sum(len(found) * (fmean(found) - mean) ** 2 for found in members.values())
    within = sum((rank - mean) ** 2 for rank in ranks) - between
    return max(0.0, between - (len(members) - 1) * within / free)


def _dice(trial: Trial) -> float:
    """Of a trial that has one."""
    assert trial.dice is not None
    return trial.dice


def _cell(value: Any) -> object:
    return cell(value) if isinstance(value, str) else json.dumps(value)

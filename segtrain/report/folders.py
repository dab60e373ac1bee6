"""What the folder of a run or of a sweep holds at this moment, for a report. Anything may be missing still."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from segtrain.config import MOST_RECIPE_BYTES, Recipe, recorded
from segtrain.errors import UserError
from segtrain.locations import without_credentials
from segtrain.runs import goodput, run_record
from segtrain.runs.best_files import parse_metrics
from segtrain.runs.goodput import Goodput
from segtrain.runs.leaderboard import BEST_NAME, ranked
from segtrain.runs.run_folder import RunFolder
from segtrain.runs.trials import Sweep, Trial, read_trials, trial_folder
from segtrain.storage.files import Storage, join
from segtrain.storage.ids import file_names

log = logging.getLogger(__name__)
PARALLEL_READS = 16
TRIES = 3
"""A run would have to end an epoch within each reading of a few files."""
NEEDED = (
    *("dice_hard_original", "iou_hard_original", "dice_soft", "epoch", "train_seconds", "fold", "data_fingerprint"),
    *("validation_ids", "validation_dice"),
)
"""What the page shows of the best epoch in any case."""
NEEDED_WITH_CURVE = ("best_threshold", "dice_at_best_threshold")
One = TypeVar("One")


@dataclass(frozen=True)
class Panel:
    """A validation picture with what was predicted for it."""

    id: str
    png: bytes
    dice: float | None
    """Hard dice at original size; None where no record has it yet."""
    rank: int | None
    """From 1, the best of the fold."""
    pictures: int
    """How many the fold has, of which a few have panels."""


@dataclass(frozen=True)
class RunContent:
    """One run."""

    folder: str
    recipe: Recipe
    recipe_text: str
    steps: Sequence[dict[str, Any]]
    """Lines of `metrics.jsonl`: step, loss, dice, learning_rate."""
    epochs: Sequence[dict[str, Any]]
    """Lines of `metrics.jsonl`: epoch, step, loss, dice_training, times, scores where the epoch was scored."""
    best: dict[str, Any]
    """`best/metrics.json`; empty before the first epoch that was scored."""
    panels: Sequence[Panel]
    """The best first; those of unknown dice last."""
    goodput: Goodput
    """Where its time went, attempt by attempt; empty for a run without a driver, such as a sweep's trial."""

    @property
    def steps_per_epoch(self) -> float:
        """0 before the first epoch has ended."""
        return self.epochs[-1]["step"] / self.epochs[-1]["epoch"] if self.epochs else 0.0


@dataclass(frozen=True)
class SweepContent:
    """One sweep."""

    folder: str
    sweep: Sweep
    recipe: Recipe | None
    recipe_text: str
    trials: Sequence[Trial]
    best_panels: Sequence[Panel]
    """Of the best trial, as is `best`."""
    best: dict[str, Any]
    """`best/metrics.json`; empty before a trial was scored."""
    pictures: dict[int, bytes]
    """Trial's number -> PNG of a panel, of the same picture for all trials that have it."""
    has_best_recipe: bool


def read_run(folder: str, storage: Storage) -> RunContent | None:
    """The run in `folder`; None where there is none. Raises UserError for a recipe that is not ours."""
    recipe, text = _recipe(folder, storage)
    lines = storage.read_if_there(RunFolder(folder).metrics_log)
    if recipe is None or (lines is None and _holds_folds(recipe, folder, storage)):
        return None
    broken = run_record.damaged(lines or b"")
    if broken:
        log.warning("%s: %d lines are damaged; the report goes without them", RunFolder(folder).metrics_log, broken)
    best, panels = _best_with_panels(folder, storage)
    return RunContent(
        folder=folder,
        recipe=recipe,
        recipe_text=text,
        steps=run_record.lines_of("step", lines or b""),
        epochs=run_record.lines_of("epoch", lines or b""),
        best=best,
        panels=panels,
        goodput=goodput.read(folder, storage),
    )


def read_sweep_folder(folder: str, sweep: Sweep, storage: Storage) -> SweepContent:
    """The sweep in `folder`, whose facts are `sweep`. Raises UserError for a recipe or a record that is not ours."""
    recipe, text = _recipe(folder, storage)
    trials = read_trials(folder, storage)
    order = ranked(trials)
    best, best_panels = _best_with_panels(trial_folder(folder, order[0].number), storage) if order else ({}, [])
    middle = best_panels[len(best_panels) // 2].id if best_panels else None
    pngs = _each(lambda trial: _picture(trial_folder(folder, trial.number), middle, storage), order)
    return SweepContent(
        folder=folder,
        sweep=sweep,
        recipe=recipe,
        recipe_text=text,
        trials=trials,
        best_panels=best_panels,
        best=best,
        pictures={trial.number: png for trial, png in zip(order, pngs, strict=True) if png is not None},
        has_best_recipe=storage.exists(join(folder, BEST_NAME)),
    )


def _recipe(folder: str, storage: Storage) -> tuple[Recipe | None, str]:
    """The recipe in a folder, and its text; None and an empty text where there is none."""
    url = RunFolder(folder).recipe
    text = storage.read_if_there(url, at_most=MOST_RECIPE_BYTES)
    if text is None:
        return None, ""
    try:
        return recorded(text), without_credentials(text.decode(errors="replace"))
    except UserError as error:
        raise UserError(
            f"{url} is not a recipe that this segtrain reads ({error}); give the folder of a run of it"
        ) from None


def _holds_folds(recipe: Recipe, folder: str, storage: Storage) -> bool:
    """Whether the folder is that of the runs of all folds, which have the same recipe."""
    return recipe.folds == "all" and any(name.startswith("fold-") for name in storage.list(folder))


def _best_with_panels(folder: str, storage: Storage) -> tuple[dict[str, Any], list[Panel]]:
    """`best/metrics.json` of a run and the panels of the same epoch; empty before they are there.

    A run that goes on replaces the panels first and the metrics last.
    """
    for _ in range(TRIES):
        stored = storage.read_if_there(RunFolder(folder).best_metrics)
        best = _best(stored, folder)
        panels = _panels(folder, best, storage)
        if storage.read_if_there(RunFolder(folder).best_metrics) == stored:
            break
    return best, panels


def _best(stored: bytes | None, folder: str) -> dict[str, Any]:
    if stored is None:
        return {}
    try:
        best = parse_metrics(stored, NEEDED)
        return parse_metrics(stored, NEEDED_WITH_CURVE) if best.get("threshold_curve") else best
    except ValueError as error:
        raise UserError(
            f"{RunFolder(folder).best_metrics} is not what a run writes ({error}); "
            "delete it, and the report goes without it"
        ) from None


def _panels(folder: str, best: dict[str, Any], storage: Storage) -> list[Panel]:
    dice = dict(zip(best.get("validation_ids", ()), best.get("validation_dice", ()), strict=True))
    rank = {name: k for k, name in enumerate(sorted(dice, key=lambda name: -dice[name]), start=1)}
    ids = {file: name for name, file in file_names(dice).items()}
    names = _panel_names(folder, storage)
    pngs = _each(lambda name: storage.read_if_there(join(RunFolder(folder).panels, name)), names)
    found = [
        Panel(name, png, dice.get(name), rank.get(name), len(dice))
        for name, png in zip((ids.get(name[:-4], name[:-4]) for name in names), pngs, strict=True)
        if png is not None
    ]
    return sorted(found, key=lambda panel: panel.rank or len(rank) + 1)


def _picture(folder: str, wanted: str | None, storage: Storage) -> bytes | None:
    """The panel of the picture `wanted` in a trial's folder, else its first one."""
    if wanted is not None:
        png = storage.read_if_there(join(RunFolder(folder).panels, f"{file_names([wanted])[wanted]}.png"))
        if png is not None:
            return png
    names = _panel_names(folder, storage)
    return storage.read_if_there(join(RunFolder(folder).panels, names[0])) if names else None


def _panel_names(folder: str, storage: Storage) -> list[str]:
    return [name for name in storage.list(RunFolder(folder).panels) if name.endswith(".png")]


def _each(read: Callable[[One], bytes | None], these: Sequence[One]) -> list[bytes | None]:
    """`read` of each, several at once: from a bucket a file takes tens of milliseconds, however small."""
    with ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="report") as pool:
        return list(pool.map(read, these))

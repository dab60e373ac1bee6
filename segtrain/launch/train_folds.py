"""One run for each fold, one after the other, and the ensemble that their networks are together."""

import json
import logging
import shlex
import statistics
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from segtrain import metrics
from segtrain.cluster import nodes
from segtrain.config import Recipe
from segtrain.errors import UserError
from segtrain.launch import train_run
from segtrain.launch.data_version import Pinned, pinned
from segtrain.launch.earlier_run import as_it_began, check_run_folder
from segtrain.launch.preflight import PreparedRun, absolute, prepared_on
from segtrain.launch.progress import RunDisplay
from segtrain.launch.train_worker import Train
from segtrain.launch.workload import fit_devices, workload_of
from segtrain.runs.best_files import parse_metrics, why_unusable
from segtrain.runs.networks import ENSEMBLE_VERSION
from segtrain.runs.ownership import write_while
from segtrain.runs.run_folder import RunFolder
from segtrain.storage.files import Storage
from segtrain.training.checkpoint import Checkpoints

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldRun:
    """The run that is validated on one fold and trained on the others."""

    prepared: PreparedRun
    finished: bool

    @property
    def fold(self) -> int:
        return self.prepared.recipe.data.fold

    @property
    def state(self) -> str:
        if self.finished:
            return "finished"
        return "goes on from its newest checkpoint" if self.prepared.resumes else "not begun"


def train_folds(
    recipe: Recipe, train: Train = train_run.train_with_tensorflow, *, extend: bool = False
) -> dict[str, Any]:
    """Train a run for every fold but `data.test_fold`, in `<folder>/fold-<k>`, and write the ensemble's file.

    Finished runs are not trained again; the others resume from their newest checkpoints. `train` and `extend` are as
    for `launch`; `train` must leave what the real one does in a run's folder. Returns what is in the file:

    - the members, and their hard dice at original resolution;
    - its mean and spread (standard deviation with n - 1);
    - the threshold with the highest mean dice over all of their validation pictures.

    Raises what `launch` raises; UserError before anything starts if one of the runs would be refused.
    """
    data, runs = _plan(recipe, extend=extend)
    recipe, storage = data.recipe, data.storage
    # Whoever began other folds here in between is found before anything of theirs is written over.
    write_while(
        lambda: check_run_folder(recipe, storage, extend=extend),
        RunFolder(recipe.run.folder).recipe,
        recipe.to_yaml().encode(),
        storage,
    )
    storage.remove_leftovers(recipe.run.folder)
    with closing(RunDisplay(recipe.run.progress_every_s)) as display:
        nodes.warn_of_hasty_stops(display.note)
        if not all(run.finished for run in runs):
            with nodes.connection():
                _train_all(runs, train, display)
    facts = [_facts_of(run, storage) for run in runs]
    entry = _ensemble(runs, facts)
    storage.write_bytes(RunFolder(recipe.run.folder).ensemble, json.dumps(entry, indent=1).encode())
    for line in [*_table(runs, facts), *_closing_lines(recipe, entry)]:
        display.note(line)
    return entry


def dry_run(recipe: Recipe, *, extend: bool = False) -> list[str]:
    """Lines that say what `train_folds` would do: `launch.dry_run` of the next run, and how far each of them is."""
    _, runs = _plan(recipe, extend=extend)
    following = next((run for run in runs if not run.finished), runs[0])
    return [*train_run.would_do(following.prepared), f"folds     {len(runs)} runs", *map(_plan_line, runs)]


def _plan_line(run: FoldRun) -> str:
    size = run.prepared.size
    pictures = f"{size.training_pictures} to train on, {size.validation_pictures} to validate on"
    return f"fold {run.fold:<4} {pictures}; {run.state}"


def _plan(recipe: Recipe, *, extend: bool) -> tuple[Pinned, list[FoldRun]]:
    """The recipe that all runs have in common, with their data, and the run of each fold with how far it is.

    Raises UserError where one of them, or the folder of them all, would be refused.
    """
    recipe = as_it_began(absolute(recipe))
    data = pinned(recipe, Storage(recipe.storage))
    fitted = fit_devices(data.recipe, workload_of(data.recipe, data.data_set)).recipe
    folds = [facts.fold for facts in data.data_set.manifest.folds if facts.fold != recipe.data.test_fold]
    data = replace(data, recipe=fitted.updated({"data.fold": folds[0]}))  # which fold is named makes no difference
    check_run_folder(data.recipe, data.storage, extend=extend)
    return data, [_fold_run(data, fold, extend=extend) for fold in folds]


def _fold_run(data: Pinned, fold: int, *, extend: bool) -> FoldRun:
    own = {"data.fold": fold, "run.storage": data.recipe.run.folder, "run.name": f"fold-{fold}", "folds": "one"}
    run = prepared_on(data.member(data.recipe.updated(own)), extend=extend)
    return FoldRun(run, finished=run.resumes and _is_finished(run.recipe, run.storage))


def _is_finished(recipe: Recipe, storage: Storage) -> bool:
    """Whether there is nothing left to do for a run: one whose `best/` is not whole makes it again when it is started.

    Raises DataError where none of its checkpoints can be read, UserError for those of a newer segtrain.
    """
    cursor = Checkpoints(recipe.run.folder, storage, keep=recipe.checkpoint.keep).cursor()
    if not cursor.is_finished(recipe.train):
        return False
    reason = why_unusable(recipe.run.folder, storage, cursor.best_step)
    if reason is not None:
        log.warning("%s", reason)
    return reason is None


def _train_all(runs: Sequence[FoldRun], train: Train, display: RunDisplay) -> None:
    batches: dict[str, Any] = {}
    for number, run in enumerate(runs, start=1):
        if run.finished:
            display.note(f"fold {run.fold} is finished")
            continue
        display.label = f"fold {run.fold} ({number} of {len(runs)})"
        _, used = train_run.run_on(display, run.prepared.updated(batches), train)
        # The next run begins with the batches that this one ended with: larger ones may have run out of memory.
        batches = {
            "train.per_replica_batch_size": used.train.per_replica_batch_size,
            "evaluation.batch_size": used.evaluation.batch_size,
        }


def _facts_of(run: FoldRun, storage: Storage) -> dict[str, Any]:
    """A finished run's `best/metrics.json`."""
    folder = run.prepared.recipe.run.folder
    url = RunFolder(folder).best_metrics
    try:
        facts = parse_metrics(storage.read_bytes(url))
    except FileNotFoundError:
        raise UserError(f"there is no {url}, although the run is finished; delete {folder} to train it again") from None
    except ValueError as error:
        raise UserError(f"{url} is not what training writes ({error}); delete {folder} to train it again") from None
    if (facts.get("threshold_curve") or {}).get("pictures") is None:
        raise UserError(
            f"{url} has no threshold_curve, as it is of an older segtrain; delete {folder} to train it again"
        )
    return facts


def _ensemble(runs: Sequence[FoldRun], facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = [run.prepared.recipe.run.name for run in runs]
    dice = [fact["dice_hard_original"] for fact in facts]
    return {
        "format_version": ENSEMBLE_VERSION,
        "members": names,
        "dice_hard_original": dict(zip(names, dice, strict=True)),
        "mean": statistics.fmean(dice),
        "spread": statistics.stdev(dice),
        "best_threshold": threshold_of_folds([fact["threshold_curve"] for fact in facts]),
    }


def threshold_of_folds(curves: Sequence[Mapping[str, Any]]) -> float:
    """The threshold with the highest mean dice over the validation pictures of all members together.

    A curve has `thresholds`, the mean `dice` of its pictures at each of them, and their number, `pictures`. Raises
    UserError where curves are of different thresholds.
    """
    thresholds = curves[0]["thresholds"]
    if any(curve["thresholds"] != thresholds for curve in curves):
        raise UserError(
            "the folds were scored at different thresholds, by several versions of segtrain; train them again"
        )
    dice, pictures = ([curve[name] for curve in curves] for name in ("dice", "pictures"))
    return metrics.pooled_threshold(thresholds, dice, pictures)[0]


def _table(runs: Sequence[FoldRun], facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each fold's scores at original resolution, their means and spreads."""
    dice, iou = ([fact[name] for fact in facts] for name in ("dice_hard_original", "iou_hard_original"))
    rows = zip(runs, dice, iou, facts, strict=True)
    return [
        f"{'fold':<8}{'dice':>8}{'IoU':>8}{'epoch':>7}",
        *(f"{run.fold:<8}{own_dice:>8.4f}{own_iou:>8.4f}{fact['epoch']:>7}" for run, own_dice, own_iou, fact in rows),
        f"{'mean':<8}{statistics.fmean(dice):>8.4f}{statistics.fmean(iou):>8.4f}",
        f"{'spread':<8}{statistics.stdev(dice):>8.4f}{statistics.stdev(iou):>8.4f}",
    ]


def _closing_lines(recipe: Recipe, entry: Mapping[str, Any]) -> list[str]:
    """Where the ensemble is, and the command that comes next."""
    folder, data = recipe.run.folder, recipe.data
    following = f"predict.py {shlex.quote(folder)} DATASET_OR_FOLDER DEST"
    if data.test_fold is not None:
        following = f"evaluate.py {shlex.join([folder, str(data.root)])} data.fold={data.test_fold}"
    return [
        f"ensemble    {RunFolder(folder).ensemble}, best threshold {entry['best_threshold']:.3f}",
        f"next        python jobs/{following}",
    ]

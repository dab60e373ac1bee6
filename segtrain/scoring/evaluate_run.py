"""Scores of trained networks on a fold of a data set: every picture once, at its own size, on the whole cluster."""

import functools
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from segtrain.cluster.spread_out import spread_out
from segtrain.config import Recipe
from segtrain.dataset.data_set import read_data_set, root_of
from segtrain.dataset.manifest import Manifest
from segtrain.errors import ConflictError, DataError, UserError
from segtrain.inference.stored_networks import StoredNetwork, read_networks
from segtrain.pipeline.selection import Selection, evaluation_selection
from segtrain.runs.networks import absolute_source, check_networks, recipes_of
from segtrain.runs.ownership import holds_folder, take_folder, version_of
from segtrain.runs.run_folder import RunFolder
from segtrain.scoring.fold_scores import FoldScores, ScoredPictures, ScoringTask
from segtrain.storage.csv_cells import csv_bytes
from segtrain.storage.files import Storage, join
from segtrain.storage.ids import file_names
from segtrain.storage.paths import absolute_output, absolute_path

logger = logging.getLogger(__name__)

PICTURES, SUMMARY, UNREADABLE, WORST = "pictures.csv", "summary.json", "unreadable.csv", "worst"
OWNER = "evaluation.owner"
"""The token of the evaluation that writes the folder."""
PANEL_NAME = re.compile(r"\d{3,}-.*\.png")
"""`<rank>-<id>.png`."""


def evaluate(recipe: Recipe, source: str, out: str | None = None) -> dict[str, float]:
    """Score the networks that `source` names on `data.fold` of `data.root`; returns means over pictures by name.

    `source` is what `inference.stored_networks.read_networks` takes. Scores are at a picture's own size, at
    `inference.threshold` or else the best one of the networks, and do not depend on the number of workers. The folder
    `out`, by default `evaluation/<data set>-fold-<fold>` in the folder `source`, gets

    - `pictures.csv` with one row per picture,
    - `worst/*.png` with panels of the `evaluation.worst` lowest,
    - `unreadable.csv` if pictures were left out,
    - and, last, `summary.json`.

    Raises UserError before anything starts, if data set, fold or networks are missing or the cluster can hold no
    worker, and later if another evaluation takes the folder over; DataError if no picture could be read; and what
    `spread_out` raises.
    """
    recipe = recipe.updated({"data.root": absolute_path(root_of(recipe.data))})
    source = absolute_source(source)
    storage = Storage(recipe.storage)
    check_networks(source, storage)
    data_set = read_data_set(storage, recipe.data)
    root, manifest = data_set.root, data_set.manifest
    selection, ids = evaluation_selection([recipe.data.fold], data_set)
    folder = _folder_for_results(recipe, source, out, storage)
    networks = read_networks(source, storage, trust_saved_model=recipe.inference.trust_saved_model)
    trained_on_it = _members_that_trained_on_it(recipe, source, networks, manifest, storage)
    if trained_on_it:
        logger.warning(
            "fold %d was trained on by %s: these scores are no forecast for new pictures",
            recipe.data.fold,
            ", ".join(trained_on_it),
        )
    token = take_folder(join(folder, OWNER), storage)
    build = functools.partial(_build_scorer, recipe, networks, manifest)
    paths = [("DATASET", root), *(("RUN", part) for part in source.split(","))]
    scores = FoldScores(ids, recipe.evaluation.worst)
    spread_out(_tasks(selection, ids), build, recipe, "scored", paths, scores.add)
    if scores.pictures == 0:
        raise DataError(f"none of the {len(ids)} pictures of fold {recipe.data.fold} of {root} could be read")
    summary = scores.summary()
    about = {
        "networks": source,
        "networks_digest": scores.digest,
        "data_root": root,
        "data_fingerprint": manifest.fingerprint,
        "fold": recipe.data.fold,
        "fold_was_trained_on_by": trained_on_it,
        "flip": recipe.inference.flip,
        "boundary_pixels": recipe.evaluation.boundary_pixels,
        "unreadable": len(scores.unreadable),
        "worst": list(scores.panels()),
    }
    _write(folder, storage, scores, {**about, **summary}, token)
    return summary


def _folder_for_results(recipe: Recipe, source: str, out: str | None, storage: Storage) -> str:
    """The folder `out`, or else one in `source`.

    Raises UserError where no `out` is given and `source` is not the folder of a run or of an ensemble.
    """
    if out is not None:
        return absolute_output("--out", out)
    marks = (RunFolder(source).recipe, RunFolder(source).ensemble)
    if source.endswith(".keras") or "," in source or not any(storage.exists(mark) for mark in marks):
        raise UserError(f"{source} is no folder of a run; say with --out where the scores are to go")
    name = (recipe.data.root or "").rstrip("/").rpartition("/")[2]
    return absolute_output("RUN", join(source, "evaluation", f"{name}-fold-{recipe.data.fold}"))


def _members_that_trained_on_it(
    recipe: Recipe, source: str, networks: Sequence[StoredNetwork], manifest: Manifest, storage: Storage
) -> list[str]:
    """Names of the networks that have seen the fold in training, although they are to be scored on it."""
    names = []
    for (folder, own), network in zip(recipes_of(source, storage), networks, strict=True):
        facts = network.facts
        trained = facts if own is None else own.data
        # The root tells as well: the fingerprint is another one where pictures were added since.
        is_its_data = facts is not None and facts.data_fingerprint == manifest.fingerprint
        is_its_data |= own is not None and own.data.root == recipe.data.root
        folds = (None, None) if trained is None else (trained.fold, trained.test_fold)
        if is_its_data and folds[0] is not None and recipe.data.fold not in folds:
            names.append(folder.rpartition("/")[2])
    return names


def _tasks(selection: Selection, ids: Sequence[str]) -> list[ScoringTask]:
    """One for each row group, in stored order."""
    firsts = accumulate(map(len, selection.kept), initial=0)
    return [
        ScoringTask(*place, tuple(rows.tolist()), tuple(ids[first : first + len(rows)]), first)
        for place, rows, first in zip(selection.places, selection.kept, firsts, strict=False)
    ]


def _build_scorer(
    recipe: Recipe, networks: Sequence[StoredNetwork], manifest: Manifest
) -> Callable[[ScoringTask], ScoredPictures]:
    """In an actor: TensorFlow is imported here."""
    from segtrain.scoring.score_worker import Scorer

    return Scorer(recipe, networks, manifest)


def _check_owner(folder: str, storage: Storage, token: str) -> None:
    """Raise UserError where another evaluation has made `folder` its own since."""
    if not holds_folder(join(folder, OWNER), storage, token):
        raise UserError(
            f"{folder} was taken over by another evaluation, which began later (or was deleted); this one writes no "
            f"more there: give each its own --out"
        )


def _write(folder: str, storage: Storage, scores: FoldScores, summary: Mapping[str, Any], token: str) -> None:
    """Write everything into `folder`, the summary last; nothing of an earlier evaluation stays there.

    Until the end, `summary.json` says that the evaluation is under way. A file is replaced or deleted only in the
    version that was there when this evaluation last saw that the folder is its own: so it never touches a file of an
    evaluation that began later. Raises UserError where such a one has taken the folder over.
    """
    columns = scores.per_picture()
    files = {
        SUMMARY: json.dumps({"state": "under way", "by": token}).encode(),
        PICTURES: csv_bytes(columns, zip(*columns.values(), strict=True)),
    }
    if scores.unreadable:
        files[UNREADABLE] = csv_bytes(("id", "reason"), sorted(scores.unreadable.items()))
        logger.warning(
            "left out %d unreadable pictures, listed in %s", len(scores.unreadable), join(folder, UNREADABLE)
        )
    files |= _panels(scores)
    there = [join(WORST, name) for name in storage.list(join(folder, WORST)) if PANEL_NAME.fullmatch(name)]
    names = dict.fromkeys([*files, *there, UNREADABLE])
    versions = {name: version_of(join(folder, name), storage) for name in names}
    _check_owner(folder, storage, token)
    try:
        for name, data in files.items():
            storage.write_if_version(join(folder, name), data, versions[name])
        for name in (name for name in names if name not in files and versions[name]):
            storage.delete_if_version(join(folder, name), versions[name])
        version = version_of(join(folder, SUMMARY), storage)
        _check_owner(folder, storage, token)
        storage.write_if_version(join(folder, SUMMARY), json.dumps(summary, indent=1).encode(), version)
    except ConflictError as error:
        raise UserError(f"{error}; another evaluation writes there: give each its own --out") from None
    for each in (folder, join(folder, WORST)):
        storage.remove_leftovers(each)
    logger.info("scores of each picture in %s, the worst in %s", join(folder, PICTURES), join(folder, WORST))


def _panels(scores: FoldScores) -> dict[str, bytes]:
    """Path below the folder -> PNG of the panels of the worst pictures."""
    panels = scores.panels()
    files = file_names(panels)
    return {join(WORST, f"{rank:03d}-{files[id]}.png"): panels[id] for rank, id in enumerate(panels, start=1)}

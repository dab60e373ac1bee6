"""A trained network applied to a data set or to a folder of pictures, over the cluster, up to Kaggle's score."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from segtrain.cluster.spread_out import spread_out
from segtrain.config import KaggleSource, Recipe
from segtrain.dataset.manifest import Manifest
from segtrain.errors import NoSpaceError, UserError
from segtrain.inference.stored_networks import StoredNetwork, combined_digest, read_networks, threshold_of
from segtrain.kaggle import submit
from segtrain.prediction import ledger, submission
from segtrain.prediction.outputs import OUTPUT_FOLDERS, Outputs
from segtrain.prediction.resume import Finished, Finisher
from segtrain.prediction.tasks import Inventory, Task, take_inventory
from segtrain.runs.networks import absolute_source, check_networks
from segtrain.storage.csv_cells import csv_bytes
from segtrain.storage.files import Storage, is_remote, join
from segtrain.storage.paths import absolute_output, absolute_path

logger = logging.getLogger(__name__)

SUBMISSION = "submission.csv"
UNREADABLE = "unreadable.csv"


@dataclass(frozen=True)
class Prediction:
    """What `predict` has made."""

    dest: str
    pictures: int
    """Those with a mask."""
    tasks_done: int
    """In this call; the others were finished before."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Id -> reason, of pictures that were left out."""
    submission: str | None = None
    """URL of the file for Kaggle."""
    score: float | None = None
    """Kaggle's public score of it."""


def predict(
    recipe: Recipe, source: str, target: str, dest: str, *, sample: str | None = None, to_kaggle: bool = False
) -> Prediction:
    """Write the masks of all pictures of `target`, a data set or a folder, into `dest`, and what else was asked for.

    A picture that an earlier call with the same network and settings has finished is done again only if it has changed.

    - `source` is what `inference.stored_networks.read_networks` takes.
    - `sample` is Kaggle's sample_submission.csv. With it, the file for Kaggle is written as well.
    - `to_kaggle` sends that file to the competition of `recipe.source` and waits for the score.

    Raises, before anything starts where that can be:

    - UserError for a target, network, sample or setting that does not fit;
    - UserError for a `dest` that holds another prediction, that lies among the pictures, or that another call takes
      over meanwhile;
    - UserError for a picture that cannot be read, unless `inference.skip_unreadable` is set;
    - NoSpaceError where `dest` is full;
    - what `spread_out`, `submission.write` and `submit.submit` raise.
    """
    source, target, dest = absolute_source(source), absolute_path(target), absolute_output("DEST", dest)
    storage = Storage(recipe.storage)
    _check_places(target, dest)
    check_networks(source, storage)
    inventory = take_inventory(storage, target, recipe.inference.folds, recipe.data.version)
    _check_submission(recipe, storage, inventory, sample, to_kaggle)
    networks = read_networks(source, storage, trust_saved_model=recipe.inference.trust_saved_model)
    finished = _take_up(recipe, storage, dest, inventory, _facts(recipe, networks, inventory))
    tasks = inventory.tasks(finished.parts)
    if finished.parts:
        logger.info("%d of %d pictures were predicted before", len(finished.parts), len(inventory.subjects))
    token = ledger.own(storage, dest)
    places = [("RUN", source), ("DATASET_OR_FOLDER", target), ("DEST", dest)]
    make_worker = functools.partial(_make_worker, recipe, networks, target, inventory.manifest, dest, token)
    unreadable = finished.unreadable | _work(recipe, tasks, make_worker, places)
    ledger.check_owner(storage, dest, token)
    for folder in (dest, *(join(dest, name) for name in (*OUTPUT_FOLDERS, ledger.PARTS))):
        storage.remove_leftovers(folder)
    _list_unreadable(storage, dest, unreadable)
    made = Prediction(dest, len(inventory.subjects) - len(unreadable), len(tasks), unreadable)
    parts = {**finished.parts, **{id: task.name for task in tasks for id in task.ids}}
    return _submit(recipe, storage, made, parts, sample, to_kaggle)


def prediction_lines(made: Prediction) -> list[str]:
    """What there is now and where."""
    lines = [f"masks       {made.pictures} in {join(made.dest, 'masks')}"]
    if made.unreadable:
        lines.append(f"unreadable  {len(made.unreadable)}, listed in {join(made.dest, UNREADABLE)}")
    if made.submission is not None:
        lines.append(f"submission  {made.submission}")
    if made.score is not None:
        lines.append(f"score       {made.score:.6f} (public)")
    return lines


def _check_places(target: str, dest: str) -> None:
    """Raise UserError where what is written would come to lie among what is read."""
    pictures, results = _place(target), _place(dest)
    if results.is_relative_to(pictures):
        where = (
            "is the folder of the pictures" if results == pictures else f"lies in {target}, which holds the pictures"
        )
        raise UserError(f"DEST: {dest} {where}; give a folder elsewhere, or the masks would be taken for pictures")
    if any(pictures.is_relative_to(results / name) for name in (*OUTPUT_FOLDERS, ledger.PARTS)):
        raise UserError(f"{target} is where the masks in DEST go; give the folder of the pictures, or another DEST")


def _place(url: str) -> PurePath:
    """A folder's path, with links followed where it is local."""
    return PurePosixPath(url) if is_remote(url) else Path(url).resolve()


def _check_submission(
    recipe: Recipe, storage: Storage, inventory: Inventory, sample: str | None, to_kaggle: bool
) -> None:
    """Everything about the file for Kaggle that can be wrong before hours of predicting."""
    if to_kaggle and sample is None:
        raise UserError("--submit sends the file that --submission SAMPLE.csv writes; give that as well")
    if sample is not None:
        if not storage.is_file(sample):
            raise UserError(f"--submission: {sample} is not there; give Kaggle's sample_submission.csv")
        submission.check_sample(sample, inventory.subjects, storage)
    if to_kaggle:
        submit.check_access(_competition(recipe), storage)


def _competition(recipe: Recipe) -> str:
    return (recipe.source if isinstance(recipe.source, KaggleSource) else KaggleSource()).competition


def _facts(recipe: Recipe, networks: Sequence[StoredNetwork], inventory: Inventory) -> dict[str, Any]:
    """What the masks depend on, besides the pictures."""
    inference, trained = recipe.inference, threshold_of([network.facts for network in networks])
    return {
        "model": combined_digest(network.digest for network in networks),
        "threshold": trained if inference.threshold is None else inference.threshold,
        "folds": inventory.folds,
        "flip": inference.flip,
        "tile_height": inference.tile_height,
        "tile_width": inference.tile_width,
        "overlap": inference.overlap,
        "overlays": inference.overlays,
        "probabilities": inference.probabilities,
    }


def _take_up(recipe: Recipe, storage: Storage, dest: str, inventory: Inventory, facts: Mapping[str, Any]) -> Finished:
    """What `dest` has already, and is kept; it is a prediction with these facts then.

    Raises UserError where it holds one with others, or of other pictures.
    """
    inference, older = recipe.inference, ledger.claim(storage, dest, facts)
    outputs = Outputs(dest, inference.overlays, inference.probabilities)
    return Finisher(storage, outputs, skip_unreadable=inference.skip_unreadable).tidy(inventory, older)


def _work(
    recipe: Recipe,
    tasks: Sequence[Task],
    make_worker: Callable[[], Callable[[Task], Any]],
    places: Sequence[tuple[str, str]],
) -> dict[str, str]:
    """Let the cluster do the tasks; id -> reason of the pictures that were left out."""
    unreadable: dict[str, str] = {}
    try:
        spread_out(tasks, make_worker, recipe, "predicted", places, lambda done: unreadable.update(done.unreadable))
    except NoSpaceError as error:
        raise NoSpaceError(f"{error}; what is finished stays, and the same command goes on") from None
    return unreadable


def _make_worker(
    recipe: Recipe, networks: Sequence[StoredNetwork], target: str, manifest: Manifest | None, dest: str, token: str
) -> Callable[[Task], Any]:
    """The worker; TensorFlow is imported here, in its process."""
    from segtrain.prediction.predict_worker import PredictionWorker

    return PredictionWorker(recipe, networks, target, manifest, dest, token)


def _list_unreadable(storage: Storage, dest: str, unreadable: Mapping[str, str]) -> None:
    """Write `id,reason`, sorted by id, where there is something to list; an earlier list goes in any case."""
    url = join(dest, UNREADABLE)
    if unreadable:
        storage.write_bytes(url, csv_bytes(("id", "reason"), sorted(unreadable.items())))
    else:
        storage.delete(url)


def _submit(
    recipe: Recipe, storage: Storage, made: Prediction, parts: Mapping[str, str], sample: str | None, to_kaggle: bool
) -> Prediction:
    """`made` with the file for Kaggle, and its score, where they were asked for; `parts` is id -> part."""
    if sample is None:
        return made
    url = join(made.dest, SUBMISSION)
    ids_of: dict[str, set[str]] = {}
    for id, part in parts.items():
        ids_of.setdefault(ledger.part_url(made.dest, part), set()).add(id)
    rows = submission.write(ids_of, sample, url, storage, only=ids_of)
    logger.info("wrote %d rows to %s", rows, url)
    message = f"segtrain {recipe.run.name}"
    score = submit.submit(url, _competition(recipe), message, storage) if to_kaggle else None
    return replace(made, submission=url, score=score)

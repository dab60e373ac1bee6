"""A trained network applied to a data set or to a folder of pictures, over the cluster, up to Kaggle's score."""

import csv
import functools
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from segtrain import cluster, preflight, submit
from segtrain.config import KaggleSource, Recipe
from segtrain.data.pace import Pace
from segtrain.data_version import with_version
from segtrain.errors import NoSpaceError, UserError
from segtrain.fleet import work_through
from segtrain.inference import ledger, submission
from segtrain.inference.parts import read_part
from segtrain.inference.tasks import Inventory, Task, take_inventory
from segtrain.storage import Storage, join

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

    `source` is what `inference.loading.load_members` takes. What an earlier call with the same network, settings and
    pictures has finished is not done again. With `sample`, Kaggle's sample_submission.csv, the file for Kaggle is
    written as well; `to_kaggle` sends it to the competition of `recipe.source` and waits for the score.

    Raises UserError, before anything starts where that can be, for a target, network, sample or setting that does not
    fit, for a `dest` that holds another prediction, and for a picture that cannot be read unless
    `inference.skip_unreadable` is set; NoSpaceError where `dest` is full; and as `work_through`, `submission.write` and
    `submit.submit` do.
    """
    source, target, dest = _absolute(source, target, dest)
    storage = Storage(recipe.storage)
    _check_submission(storage, sample, to_kaggle)
    preflight.check_networks(source, storage)
    inventory = take_inventory(storage, target, recipe.inference.folds, recipe.data.version)
    if inventory.folds is not None:
        recipe = with_version(recipe, inventory.fingerprint)  # pictures may be added while workers start
    facts = _facts(recipe, inventory)
    ledger.check(storage, dest, facts)
    before = ledger.finished(storage, dest)
    remaining = [task for task in inventory.tasks if task.name not in before]
    if before:
        logger.info("%d of %d tasks were finished before", len(inventory.tasks) - len(remaining), len(inventory.tasks))
    told = {"source": source, "target": target, "dest": dest, "facts": facts}
    unreadable = _work(recipe, remaining, told)
    if recipe.inference.skip_unreadable:
        unreadable |= _left_out_before(storage, dest, [task for task in inventory.tasks if task.name in before])
        _list_unreadable(storage, dest, unreadable)
    made = Prediction(dest, inventory.pictures - len(unreadable), len(remaining), unreadable)
    return _submit(recipe, storage, made, inventory, sample, to_kaggle)


def closing_lines(made: Prediction) -> list[str]:
    """What there is now and where."""
    lines = [f"masks       {made.pictures} in {join(made.dest, 'masks')}"]
    if made.unreadable:
        lines.append(f"unreadable  {len(made.unreadable)}, listed in {join(made.dest, UNREADABLE)}")
    if made.submission is not None:
        lines.append(f"submission  {made.submission}")
    if made.score is not None:
        lines.append(f"score       {made.score:.6f} (public)")
    return lines


def _absolute(source: str, target: str, dest: str) -> tuple[str, str, str]:
    """The three with absolute local paths, because workers run in other folders."""
    sources = ",".join(preflight.absolute_path(part.strip()) if part.strip() else "" for part in source.split(","))
    return sources, preflight.absolute_path(target), preflight.absolute_output("DEST", dest)


def _check_submission(storage: Storage, sample: str | None, to_kaggle: bool) -> None:
    if to_kaggle and sample is None:
        raise UserError("--submit sends the file that --submission SAMPLE.csv writes; give that as well")
    if sample is not None and not storage.exists(sample):
        raise UserError(f"--submission: {sample} is not there; give Kaggle's sample_submission.csv")


def _facts(recipe: Recipe, inventory: Inventory) -> dict[str, Any]:
    """What the results depend on, as far as it is known without the network."""
    inference = recipe.inference
    facts = {
        "pictures": inventory.fingerprint,
        "folds": inventory.folds,
        "flip": inference.flip,
        "tile_height": inference.tile_height,
        "tile_width": inference.tile_width,
        "overlap": inference.overlap,
        "overlays": inference.overlays,
        "probabilities": inference.probabilities,
    }
    return facts if inference.threshold is None else {**facts, "threshold": inference.threshold}


def _work(recipe: Recipe, tasks: Sequence[Task], told: Mapping[str, Any]) -> dict[str, str]:
    """Let the cluster do the tasks; id -> reason of the pictures that were left out."""
    unreadable: dict[str, str] = {}
    pace = Pace("predicted", sum(len(task.ids) for task in tasks), recipe.run.progress_every_s)

    def take(task: Task, done: Any) -> None:
        unreadable.update(done.unreadable)
        if task.ids:
            pace.add(len(task.ids), done.bytes)

    with cluster.connection():
        paths = {"RUN": told["source"], "DATASET_OR_FOLDER": told["target"], "DEST": told["dest"]}
        preflight.check_shared(paths, cluster.offer())
        make_worker = functools.partial(_make_worker, recipe.to_dict(), dict(told))
        # Where nothing is left to do, a task without pictures: the network may be another one than what is finished
        # was made with, which only a worker can tell.
        todo = tasks or [Task("nothing", (), ())]
        try:
            work_through(todo, make_worker, recipe.cluster, take, actors=recipe.inference.workers)
        except NoSpaceError as error:
            raise NoSpaceError(f"{error}; what is finished stays, and the same command goes on") from None
    return unreadable


def _make_worker(recipe: dict[str, Any], told: dict[str, Any]) -> Callable[[Task], Any]:
    """The worker; TensorFlow is imported here, in its process."""
    from segtrain.inference.worker import Assignment, build_worker

    return build_worker(Assignment(recipe=Recipe.from_dict(recipe), **told))


def _left_out_before(storage: Storage, dest: str, tasks: Sequence[Task]) -> dict[str, str]:
    """Id -> reason of the pictures that an earlier call has left out."""
    unreadable: dict[str, str] = {}
    for task in tasks:
        unreadable.update(read_part(storage, ledger.part_url(dest, task.name)).unreadable)
    return unreadable


def _list_unreadable(storage: Storage, dest: str, unreadable: Mapping[str, str]) -> None:
    """Write `id,reason`, sorted by id, where there is something to list."""
    if unreadable:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("id", "reason"))
        writer.writerows(sorted(unreadable.items()))
        storage.write_bytes(join(dest, UNREADABLE), text.getvalue().encode())


def _submit(
    recipe: Recipe, storage: Storage, made: Prediction, inventory: Inventory, sample: str | None, to_kaggle: bool
) -> Prediction:
    """`made` with the file for Kaggle, and its score, where they were asked for."""
    if sample is None:
        return made
    url = join(made.dest, SUBMISSION)
    rows = submission.write((ledger.part_url(made.dest, task.name) for task in inventory.tasks), sample, url, storage)
    logger.info("wrote %d rows to %s", rows, url)
    score = None
    if to_kaggle:
        source = recipe.source if isinstance(recipe.source, KaggleSource) else KaggleSource()
        score = submit.submit(url, source.competition, f"segtrain {recipe.run.name}", storage)
    return Prediction(made.dest, made.pictures, made.tasks_done, made.unreadable, url, score)

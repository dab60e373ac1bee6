"""What can be known to fail, found out before a worker starts: data, folds, the run's folder, room in the cluster.

Nothing here imports TensorFlow or Ray.
"""

from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segtrain.cluster.offer import Offer, check_shared, counted, needs
from segtrain.config import Recipe, identity_differences
from segtrain.config.batch_split import split_of
from segtrain.dataset.cautions import cautions
from segtrain.dataset.manifest import read_index, read_manifest
from segtrain.errors import UserError
from segtrain.locations import check_given
from segtrain.memory import Plan, gib, parameters, plan
from segtrain.pipeline.selection import evaluation_selection, training_selection
from segtrain.runs.run_folder import recipe_of
from segtrain.storage.files import Storage
from segtrain.storage.paths import absolute_output, absolute_path


@dataclass(frozen=True)
class Size:
    """How much a run has to do."""

    training_pictures: int
    validation_pictures: int
    steps_per_epoch: int
    training_bytes: int
    """Stored bytes of the row groups that an epoch reads, where no cache has them."""
    validation_bytes: int
    height: int
    width: int
    """Of the data set's largest picture."""
    cautions: tuple[str, ...] = ()
    """Sentences about masks that make scores say little."""


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with absolute local paths, because workers may run in other folders.

    Raises UserError for the home of a user that there is not, and for a relative `run.storage` within the copy of a
    working folder that `ray job submit` uploads: Ray deletes that copy after the job.
    """
    paths = {"data.root": recipe.data.root, "train.init_from": recipe.train.init_from}
    check_given({**paths, "run.storage": recipe.run.storage, "data.node_cache": recipe.data.node_cache})
    absolutes = {field: absolute_path(path) for field, path in paths.items() if path is not None}
    return recipe.updated({**absolutes, "run.storage": absolute_output("run.storage", recipe.run.storage)})


def check_data_set(recipe: Recipe, storage: Storage) -> Size:
    """Read the manifest and count. Raises UserError for no data set, an unknown fold, or one without pictures."""
    data, train = recipe.data, recipe.train
    if data.root is None:
        raise UserError("data.root is not set; give the folder or s3:// URL that jobs/prepare.py wrote")
    manifest = read_manifest(storage, data.root, data.version)
    training = training_selection(data, train.seed, manifest, storage, data.root)
    validation, validation_ids = evaluation_selection([data.fold], manifest, storage, data.root)
    pictures = int(training.table.rows.sum())
    return Size(
        training_pictures=pictures,
        validation_pictures=len(validation_ids),
        steps_per_epoch=-(-pictures // train.global_batch_size),
        training_bytes=int(training.table.bytes.sum()),
        validation_bytes=int(validation.table.bytes.sum()),
        height=manifest.max_height,
        width=manifest.max_width,
        cautions=tuple(_cautions(recipe, read_index(storage, data.root, manifest))),
    )


def _cautions(recipe: Recipe, index: pa.Table) -> list[str]:
    """About the masks that the recipe trains on or is scored on."""
    left_out = recipe.data.test_fold
    used = index.filter(index["labelled"]).sort_by("id")
    if left_out is not None:
        used = used.filter(pc.not_equal(used["fold"], left_out))
    return cautions(*(used[name].to_pylist() for name in ("foreground", "fold", "id")))


def fit_devices(recipe: Recipe, size: Size) -> Plan:
    """The recipe changed so that a step fits `cluster.device_bytes`, and what it takes; see `segtrain.memory.plan`."""
    return plan(recipe, recipe.cluster.device_bytes, picture=(size.height, size.width))


def check_run_folder(recipe: Recipe, storage: Storage, *, extend: bool) -> bool:
    """Whether the run's folder holds an earlier attempt of this recipe; False where there is none.

    Raises UserError where it holds a run of another recipe. With `extend`, `train.epochs` may be larger than before.
    """
    try:
        earlier = recipe_of(recipe.run.folder, storage)
    except FileNotFoundError:
        return False
    if earlier.folds != recipe.folds:
        held = "runs of all folds (folds=all)" if earlier.folds == "all" else "a run of one fold (folds=one)"
        raise UserError(f"{recipe.run.folder} holds {held}; give the run another name (run.name=...)")
    differences = identity_differences(earlier, recipe)
    grows = recipe.train.epochs > earlier.train.epochs
    if extend and grows:
        differences = [line for line in differences if not line.startswith("train.epochs:")]
    if differences:
        fix = "give the run another name (run.name=...)"
        if grows and len(differences) == 1:
            fix = f"train on with --extend, or {fix}"
        raise UserError(f"{recipe.run.folder} holds a run of another recipe ({'; '.join(differences)}); {fix}")
    return True


def check_shared_paths(recipe: Recipe, offer: Offer) -> None:
    """Raise UserError for a local path where workers may run on several machines."""
    paths = {
        "data.root": recipe.data.root,
        "run.storage": recipe.run.storage,
        "train.init_from": recipe.train.init_from,
    }
    check_shared(paths, offer)


def plan_lines(fitted: Plan, size: Size, offer: Offer) -> list[str]:
    """What a dry run prints after the recipe."""
    recipe = fitted.recipe
    cluster, train = recipe.cluster, recipe.train
    split = split_of(recipe)
    return [
        f"pictures  {size.training_pictures} to train on, {size.validation_pictures} to validate on",
        f"steps     {size.steps_per_epoch} an epoch, {size.steps_per_epoch * train.epochs} in {train.epochs} epochs",
        f"batch     {train.global_batch_size} = {counted(cluster.max_workers, 'worker')} x "
        f"{counted(cluster.replicas_per_worker, 'replica')} x {counted(split.accumulation, 'pass', 'passes')} x "
        f"{split.per_replica} pictures{_empty(split.per_replica * split.accumulation, recipe)}",
        f"data      {gib(size.training_bytes)} to read an epoch, {gib(size.validation_bytes)} to validate",
        f"network   {parameters(recipe.model):,} parameters",
        *_memory_lines(fitted),
        *size.cautions,
        f"asks for  {needs(cluster)}",
        f"cluster   {offer}",
        f"folder    {recipe.run.folder}",
    ]


def _memory_lines(fitted: Plan) -> list[str]:
    """Bytes of a step by kind, and what was changed to make it fit."""
    footprint, cluster = fitted.footprint, fitted.recipe.cluster
    kinds = ", ".join(f"{kind} {gib(count)}" for kind, count in asdict(footprint).items() if count)
    lines = [f"memory    about {gib(footprint.total)} a replica: {kinds}"]
    if cluster.device_bytes is not None:
        lines.append(f"fits      {gib(cluster.device_bytes)}: {'; '.join(fitted.reasons) or 'as asked'}")
    return lines


def _empty(pictures_per_replica: int, recipe: Recipe) -> str:
    slots = pictures_per_replica * recipe.cluster.replicas_per_worker * recipe.cluster.max_workers
    spare = slots - recipe.train.global_batch_size
    return f", {spare} of them empty" if spare else ""

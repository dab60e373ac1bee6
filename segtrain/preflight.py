"""What can be known to fail, found out before a worker starts: data, folds, the run's folder, room in the cluster.

Nothing here imports TensorFlow or Ray.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from segtrain.config import (
    MOST_RECIPE_BYTES,
    ClusterConfig,
    Recipe,
    identity_differences,
    load_recipe,
    override,
    recorded,
)
from segtrain.data.cautions import cautions
from segtrain.data.manifest import read_index, read_manifest
from segtrain.data.plan import batch_split
from segtrain.data.selection import evaluation_selection, training_selection
from segtrain.ensemble import ENSEMBLE_NAME, members_of
from segtrain.errors import UserError
from segtrain.locations import check_given
from segtrain.memory import Plan, gib, parameters, plan
from segtrain.storage import Storage, is_remote, join, local_path


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    host: str
    cpus: float
    gpus: float

    def room(self, cluster: ClusterConfig) -> int:
        """How many workers it can hold when nothing else runs."""
        room = self.cpus // cluster.cpus_per_worker
        if cluster.gpus_per_worker:
            room = min(room, self.gpus // cluster.gpus_per_worker)
        return int(room)


@dataclass(frozen=True)
class Offer:
    """What the cluster can ever give."""

    nodes: Sequence[Node]
    limits: Mapping[str, float] | None = None
    """Most CPUs (`CPU`) and GPUs (`GPU`) that an autoscaler may reach, infinite where it does not say; None where the
    nodes are all there will be."""

    def room(self, cluster: ClusterConfig) -> int | None:
        """How many workers it can ever hold; None where an autoscaler does not tell how far it goes."""
        if self.limits is None:
            return sum(node.room(cluster) for node in self.nodes)
        wanted = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
        most = min(self.limits.get(name, 0) / number for name, number in wanted.items() if number)
        return None if math.isinf(most) else int(most)

    def __str__(self) -> str:
        cpus, gpus = sum(node.cpus for node in self.nodes), sum(node.gpus for node in self.nodes)
        grows = "" if self.limits is None else ", and may grow"
        return f"{_count(len(self.nodes), 'node')} with {_count(cpus, 'CPU')} and {_count(gpus, 'GPU')}{grows}"


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
    return recipe.changed({**absolutes, "run.storage": absolute_output("run.storage", recipe.run.storage)})


def absolute_path(path: str) -> str:
    """A local path made absolute; a URL as it is."""
    return path if is_remote(path) else str(local_path(path).absolute())


def absolute_output(field: str, path: str) -> str:
    """The absolute path of what a job writes; UserError names the field where it would not outlive the job."""
    found = absolute_path(path)
    if not is_remote(found) and "runtime_resources" in Path(found).parts:
        raise UserError(
            f"{field}: '{path}' would be deleted with this job's copy of the working folder; "
            f"give an absolute path or an s3:// URL"
        )
    return found


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


def recipe_of(folder: str, storage: Storage) -> Recipe:
    """The recipe that a run's folder was made with.

    Raises FileNotFoundError where there is none, and UserError where it is not one that this segtrain reads.
    """
    url = join(folder, "recipe.yaml")
    text = storage.read_bytes(url, at_most=MOST_RECIPE_BYTES)
    try:
        return recorded(text)
    except UserError as error:
        raise UserError(
            f"{url} is not a recipe that this segtrain reads ({error}); give another folder (run.name=...)"
        ) from None


def recipe_to_score(source: str, dataset: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of the networks that `source` names, for another data set and one worker's resources on the CPU.

    That is a run's own recipe, the first member's of an ensemble, and the defaults for a model without one;
    `overrides` come last. No fold is set aside: an ensemble is scored on what was its members' test fold, if any.
    That SavedModels are to be trusted is for `overrides` alone to say, which the user has typed.
    """
    # The overrides may say how to reach the storage that the run's own recipe lies in.
    storage = Storage(load_recipe(None, [text for text in overrides if text.startswith("storage")]).storage)
    recipes = [recipe for _, recipe in recipes_of(source, storage) if recipe is not None]
    recipe = recipes[0] if recipes else Recipe()
    fold = recipe.data.test_fold if len(recipes) > 1 and recipe.data.test_fold is not None else recipe.data.fold
    data = {"data.root": dataset, "data.version": None, "data.fold": fold, "data.test_fold": None}
    here = {"cluster": ClusterConfig().model_dump(), "folds": "one", "inference.trust_saved_model": False}
    return override(recipe.changed({**data, **here}), overrides)


def check_networks(source: str, storage: Storage) -> None:
    """Raise UserError for a part of `source` (as for `recipes_of`) where there is no trained network."""
    for part in _parts(source):
        places = ("best/model.keras", ENSEMBLE_NAME, "saved_model.pb")
        wanted = [part] if part.endswith(".keras") else [join(part, place) for place in places]
        if not any(storage.exists(url) for url in wanted):
            raise UserError(
                f"there is no {' or '.join(wanted)}; give the folder of a run that has finished an epoch, of an "
                f"ensemble or of a SavedModel, or a .keras file"
            )


def recipes_of(source: str, storage: Storage) -> list[tuple[str, Recipe | None]]:
    """The folder of each network that `source` names, with the recipe of its run where the folder is a run's.

    `source` is what `segtrain.inference.loading.load_members` takes: the folder of a run, of an ensemble or of a
    SavedModel, a `.keras` file, or several of these joined by commas.
    """
    found: list[tuple[str, Recipe | None]] = []
    for folder in (folder for part in _parts(source) for folder in _folders(part, storage)):
        try:
            found.append((folder, recipe_of(folder, storage)))
        except FileNotFoundError:
            found.append((folder, None))
    return found


def _parts(source: str) -> list[str]:
    return [part.strip().rstrip("/") for part in source.split(",")]


def _folders(part: str, storage: Storage) -> list[str]:
    """The folders of the members of an ensemble, or of the one network."""
    if part.endswith(".keras"):
        return [(part.rpartition("/")[0] or ".").removesuffix("/best")]
    return members_of(part, storage) or [part]


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


def check_offer(cluster: ClusterConfig, offer: Offer) -> None:
    """Raise UserError where the cluster can never hold the run's workers."""
    room = offer.room(cluster)
    if room is not None and room < cluster.min_workers:
        raise UserError(f"the run asks for {needs(cluster)}, but the cluster has {offer}; {_lower(cluster, offer)}")


def _lower(cluster: ClusterConfig, offer: Offer) -> str:
    if cluster.gpus_per_worker and not any(node.gpus for node in offer.nodes):
        return "set cluster.gpus_per_worker=0 to train on the CPU, or start Ray on a machine with GPUs"
    gpus = ", cluster.gpus_per_worker" if cluster.gpus_per_worker else ""
    return f"lower cluster.workers{gpus} or cluster.cpus_per_worker, or add nodes"


def needs(cluster: ClusterConfig) -> str:
    """What the run asks for, in words."""
    gpus = f" and {_count(cluster.gpus_per_worker, 'GPU')}" if cluster.gpus_per_worker else ""
    fewest = "" if cluster.min_workers == cluster.max_workers else f"{cluster.min_workers} to "
    return f"{fewest}{_count(cluster.max_workers, 'worker')} with {_count(cluster.cpus_per_worker, 'CPU')}{gpus} each"


def missing(cluster: ClusterConfig, free: Sequence[Node]) -> str:
    """What stands in the way of a run's workers, from what is free on each node."""
    room = sum(node.room(cluster) for node in free)
    cpus, gpus = sum(node.cpus for node in free), sum(node.gpus for node in free)
    what = f"{_count(cpus, 'CPU')} and {_count(gpus, 'GPU')}" if cluster.gpus_per_worker else _count(cpus, "CPU")
    if room >= cluster.min_workers:
        return f"there is room for {room}, and they are being started"
    return f"room for {_count(cluster.min_workers - room, 'worker')} is missing, with {what} free"


def check_shared_paths(recipe: Recipe, offer: Offer) -> None:
    """Raise UserError for a local path where workers may run on several machines."""
    paths = {
        "data.root": recipe.data.root,
        "run.storage": recipe.run.storage,
        "train.init_from": recipe.train.init_from,
    }
    check_shared(paths, offer)


def check_shared(paths: Mapping[str, str | None], offer: Offer) -> None:
    """Raise UserError for a local path where workers may run on several machines; by the field that each is from."""
    hosts = {node.host for node in offer.nodes}
    if len(hosts) < 2 and offer.limits is None:
        return
    machines = "may grow to several machines" if len(hosts) < 2 else f"has {len(hosts)} machines"
    for field, path in paths.items():
        if path is not None and not is_remote(path):
            raise UserError(f"{field}: {path} is a local path, but the cluster {machines}; give an s3:// URL")


def plan_lines(fitted: Plan, size: Size, offer: Offer) -> list[str]:
    """What a dry run prints after the recipe."""
    recipe = fitted.recipe
    cluster, train = recipe.cluster, recipe.train
    split = batch_split(
        train.global_batch_size,
        recipe.data.lanes,
        cluster.max_workers,
        cluster.replicas_per_worker,
        train.per_replica_batch_size,
    )
    return [
        f"pictures  {size.training_pictures} to train on, {size.validation_pictures} to validate on",
        f"steps     {size.steps_per_epoch} an epoch, {size.steps_per_epoch * train.epochs} in {train.epochs} epochs",
        f"batch     {train.global_batch_size} = {_count(cluster.max_workers, 'worker')} x "
        f"{_count(cluster.replicas_per_worker, 'replica')} x {_count(split.accumulation, 'pass', 'passes')} x "
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


def _count(number: float, one: str, many: str | None = None) -> str:
    return f"{number:g} {one if number == 1 else many or one + 's'}"

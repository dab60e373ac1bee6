"""What can be known to fail, found out before a worker starts: data, folds, the run's folder, room in the cluster.

Nothing here imports TensorFlow or Ray.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from segtrain.config import ClusterConfig, Recipe, identity_differences, load_recipe, override
from segtrain.data.manifest import read_manifest
from segtrain.data.plan import batch_split
from segtrain.data.selection import evaluation_selection, training_selection
from segtrain.errors import UserError
from segtrain.storage import Storage, is_remote, join


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
    """Most CPUs (`CPU`) and GPUs (`GPU`) that an autoscaler may reach; None where the nodes are all there will be."""

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


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with absolute local paths, because workers may run in other folders.

    Raises UserError for a relative `run.storage` within the copy of a working folder that `ray job submit` uploads:
    Ray deletes that copy after the job.
    """
    tree = recipe.to_dict()
    if not is_remote(recipe.run.storage):
        storage = Path(recipe.run.storage).expanduser()
        if not storage.is_absolute() and "runtime_resources" in Path.cwd().parts:
            raise UserError(
                f"run.storage: '{recipe.run.storage}' would be deleted with this job's copy of the working folder; "
                f"give an absolute path or an s3:// URL"
            )
        tree["run"]["storage"] = str(storage.absolute())
    for section, key in (("data", "root"), ("train", "init_from")):
        path = tree[section][key]
        if path is not None and not is_remote(path):
            tree[section][key] = str(Path(path).expanduser().absolute())
    return Recipe.from_dict(tree)


def check_data_set(recipe: Recipe, storage: Storage) -> Size:
    """Read the manifest and count. Raises UserError for no data set, an unknown fold, or one without pictures."""
    data, train = recipe.data, recipe.train
    if data.root is None:
        raise UserError("data.root is not set; give the folder or s3:// URL that jobs/prepare.py wrote")
    manifest = read_manifest(storage, data.root)
    training = training_selection(data, train.seed, manifest, storage, data.root)
    _, validation_ids = evaluation_selection([data.fold], manifest, storage, data.root)
    pictures = int(training.table.rows.sum())
    return Size(pictures, len(validation_ids), -(-pictures // train.global_batch_size))


def check_evaluation(recipe: Recipe, storage: Storage) -> None:
    """Raise UserError where there is no best model, no data set, or no labelled picture in the fold to score on."""
    model = join(recipe.run.folder, "best", "model.keras")
    if not storage.exists(model):
        raise UserError(f"there is no {model}; RUN is the folder of a run that has finished an epoch")
    if recipe.data.root is None:
        raise UserError("data.root is not set; give the data set to score on")
    evaluation_selection([recipe.data.fold], read_manifest(storage, recipe.data.root), storage, recipe.data.root)


def recipe_of(folder: str, storage: Storage) -> Recipe:
    """The recipe that a run's folder was made with.

    Raises FileNotFoundError where there is none, and UserError where it is not one that this segtrain reads.
    """
    url = join(folder, "recipe.yaml")
    text = storage.read_bytes(url)
    try:
        return Recipe.from_dict(yaml.safe_load(text))
    except (UserError, yaml.YAMLError, TypeError, ValueError):
        raise UserError(f"{url} is not a recipe that this segtrain reads; give another folder (run.name=...)") from None


def recipe_to_score(folder: str, dataset: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of the run in `folder`, for one worker without GPUs and another data set, then the overrides.

    Raises UserError where the folder holds no run.
    """
    # The overrides may say how to reach the storage that the run's own recipe lies in.
    storage = Storage(load_recipe(None, overrides).storage)
    try:
        tree = recipe_of(folder, storage).to_dict()
    except FileNotFoundError:
        raise UserError(f"there is no recipe.yaml in {folder}; give the folder of a run") from None
    parent, _, name = folder.rstrip("/").rpartition("/")
    tree["run"] |= {"storage": parent or ".", "name": name}
    tree["data"]["root"] = dataset
    tree["cluster"] = ClusterConfig().model_dump()
    return override(Recipe.from_dict(tree), overrides)


def check_run_folder(recipe: Recipe, storage: Storage, *, extend: bool) -> bool:
    """Whether the run's folder holds an earlier attempt of this recipe; False where there is none.

    Raises UserError where it holds a run of another recipe. With `extend`, `train.epochs` may be larger than before.
    """
    try:
        earlier = recipe_of(recipe.run.folder, storage)
    except FileNotFoundError:
        return False
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
    if offer.limits is None:
        fits = sum(node.room(cluster) for node in offer.nodes) >= cluster.workers
    else:
        asked = {"CPU": cluster.workers * cluster.cpus_per_worker, "GPU": cluster.workers * cluster.gpus_per_worker}
        fits = all(offer.limits.get(name, 0) >= count for name, count in asked.items() if count)
    if not fits:
        raise UserError(f"the run asks for {needs(cluster)}, but the cluster has {offer}; {_lower(cluster, offer)}")


def _lower(cluster: ClusterConfig, offer: Offer) -> str:
    if cluster.gpus_per_worker and not any(node.gpus for node in offer.nodes):
        return "set cluster.gpus_per_worker=0 to train on the CPU, or start Ray on a machine with GPUs"
    gpus = ", cluster.gpus_per_worker" if cluster.gpus_per_worker else ""
    return f"lower cluster.workers{gpus} or cluster.cpus_per_worker, or add nodes"


def needs(cluster: ClusterConfig) -> str:
    """What the run asks for, in words."""
    gpus = f" and {_count(cluster.gpus_per_worker, 'GPU')}" if cluster.gpus_per_worker else ""
    return f"{_count(cluster.workers, 'worker')} with {_count(cluster.cpus_per_worker, 'CPU')}{gpus} each"


def check_shared_paths(recipe: Recipe, offer: Offer) -> None:
    """Raise UserError for a local path where workers may run on several machines."""
    hosts = {node.host for node in offer.nodes}
    if len(hosts) < 2:
        return
    for field, path in (
        ("data.root", recipe.data.root),
        ("run.storage", recipe.run.storage),
        ("train.init_from", recipe.train.init_from),
    ):
        if path is not None and not is_remote(path):
            raise UserError(
                f"{field}: {path} is a local path, but the cluster has {len(hosts)} machines; give an s3:// URL"
            )


def plan_lines(recipe: Recipe, size: Size, offer: Offer) -> list[str]:
    """What a dry run prints after the recipe."""
    cluster, train = recipe.cluster, recipe.train
    split = batch_split(
        train.global_batch_size,
        recipe.data.lanes,
        cluster.workers,
        cluster.replicas_per_worker,
        train.per_replica_batch_size,
    )
    return [
        f"pictures  {size.training_pictures} to train on, {size.validation_pictures} to validate on",
        f"steps     {size.steps_per_epoch} an epoch, {size.steps_per_epoch * train.epochs} in {train.epochs} epochs",
        f"batch     {train.global_batch_size} = {_count(cluster.workers, 'worker')} x "
        f"{_count(cluster.replicas_per_worker, 'replica')} x {_count(split.accumulation, 'pass', 'passes')} x "
        f"{split.per_replica} pictures{_empty(split.per_replica * split.accumulation, recipe)}",
        f"asks for  {needs(cluster)}",
        f"cluster   {offer}",
        f"folder    {recipe.run.folder}",
    ]


def _empty(pictures_per_replica: int, recipe: Recipe) -> str:
    slots = pictures_per_replica * recipe.cluster.replicas_per_worker * recipe.cluster.workers
    spare = slots - recipe.train.global_batch_size
    return f", {spare} of them empty" if spare else ""


def _count(number: float, one: str, many: str | None = None) -> str:
    return f"{number:g} {one if number == 1 else many or one + 's'}"

"""Which version of its data set a job reads, decided once, before anything starts.

A set may grow while it is read. The driver chooses a version and writes it into the recipe (`data.version`) that its
workers, folds and trials get, so all of them see one. A job that is taken up again goes on with the version that it was
begun on, as long as that is kept.

What a recipe leaves out and the data set decides, the number of lanes, is written into it here as well.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, replace

from segtrain.config import Recipe
from segtrain.dataset.data_set import DataSet, root_of
from segtrain.dataset.manifest import Manifest, VersionGoneError, read_index, read_manifest, read_version
from segtrain.errors import UserError
from segtrain.pipeline.sample_order import sample_order
from segtrain.runs.run_folder import recipe_of
from segtrain.storage.files import Storage, join
from segtrain.training.checkpoint import Checkpoints

FOLD_NAME = re.compile(r"fold-\d+")
TRIALS = "trials"


@dataclass(frozen=True)
class Pinned:
    """A recipe with the version of its data set and the order of its samples, and that version as it was read."""

    recipe: Recipe
    storage: Storage
    data_set: DataSet
    older_version: str | None
    """A line where the data set has a newer version."""

    def member(self, recipe: Recipe) -> "Pinned":
        """The data of a fold or a trial of this job; read once more only where its recipe names another version.

        Raises UserError where what is in its folder was trained on another version than its recipe names.
        """
        if recipe.data.version != self.recipe.data.version:
            return pinned(recipe, self.storage)
        _trained_on(recipe, self.storage)
        return replace(self, recipe=recipe)


def pinned(recipe: Recipe, storage: Storage) -> Pinned:
    """Choose the version and read it: two files where it is the newest.

    It is the version that the run, folds or sweep in the folder were trained on. Where nothing was trained it is the
    one that the recipe names, else the one that an earlier attempt was to begin on, else the newest.
    Raises UserError where the folder was trained on another version than the recipe names, where a version is not
    there any more, where there is no data set, and where the run may have more workers than the set has lanes.
    """
    root = root_of(recipe.data)
    newest = read_manifest(storage, root)
    manifest = _chosen(recipe, root, newest, storage)
    line = f"data        version {manifest.fingerprint} of {root}; version {newest.fingerprint} is newer"
    return Pinned(
        sample_order(recipe, manifest).written_into(recipe).updated({"data.version": manifest.fingerprint}),
        storage,
        DataSet(root, manifest, read_index(storage, root, manifest)),
        None if manifest.fingerprint == newest.fingerprint else line,
    )


def _chosen(recipe: Recipe, root: str, newest: Manifest, storage: Storage) -> Manifest:
    folder = recipe.run.folder
    trained = _trained_on(recipe, storage)
    if trained is not None:
        try:
            return read_version(storage, root, trained, newest)
        except VersionGoneError:
            raise UserError(
                f"{folder} was trained on version {trained} of its data set, which {root} does not have (any more: "
                f"`jobs/data.py prune` removes versions, and so does `jobs/prepare.py` beyond prepare.keep_versions); "
                f"give the run another name (run.name=...) to train on version {newest.fingerprint}, from its weights "
                f"where train.init_from={folder} is added, or name a data set that has the version (data.root=...)"
            ) from None
    if recipe.data.version is not None:
        try:
            return read_version(storage, root, recipe.data.version, newest)
        except VersionGoneError as error:
            raise UserError(f"data.version: {error}; name that, or set data.version=null for the newest") from None
    with suppress(FileNotFoundError, VersionGoneError):  # then nothing has been trained on it
        return read_version(storage, root, recipe_of(folder, storage).data.version or newest.fingerprint, newest)
    return newest


def _trained_on(recipe: Recipe, storage: Storage) -> str | None:
    """The version that there are checkpoints of: in the folder, or in those of its folds or trials.

    Raises UserError where the recipe names another one.
    """
    folder, named = recipe.run.folder, recipe.data.version
    fingerprints = (Checkpoints(each, storage, keep=2).data_fingerprint() for each in _folders(folder, storage))
    trained = next((fingerprint for fingerprint in fingerprints if fingerprint is not None), None)
    if trained is not None and named not in (None, trained):
        raise UserError(
            f"data.version: {folder} was trained on version {trained} of its data set, not on {named}; "
            "leave data.version out, or give the run another name (run.name=...)"
        )
    return trained


def _folders(folder: str, storage: Storage) -> list[str]:
    names = [name for name in storage.list(folder) if FOLD_NAME.fullmatch(name)]
    names += [join(TRIALS, name) for name in storage.list(join(folder, TRIALS))]
    return [folder, *(join(folder, name) for name in names)]

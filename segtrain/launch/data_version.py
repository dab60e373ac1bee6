"""Which version of its data set a job reads, decided once, before anything starts.

A set may grow while it is read. The driver chooses a version and writes it into the recipe (`data.version`) that its
workers, folds and trials get; so all of them see one, and what is taken up again goes on with the version it was begun
on, as long as that is kept.
"""

import re

from segtrain.config import Recipe
from segtrain.dataset.manifest import VersionGoneError, read_manifest
from segtrain.errors import UserError
from segtrain.runs.run_folder import recipe_of
from segtrain.storage.files import Storage, join
from segtrain.training.checkpoint import Checkpoints

FOLD_NAME = re.compile(r"fold-\d+")
TRIALS = "trials"


def pinned(recipe: Recipe, storage: Storage) -> tuple[Recipe, str | None]:
    """The recipe with `data.version` set, and a line where that is not the newest version of the data set.

    It is the version that the run, folds or sweep in the folder were trained on; else the one that the recipe names,
    or that what is in the folder was to begin on; else the newest. Raises UserError where what is in the folder was
    trained on another version than the recipe names, or on one that is not there any more; and where there is no data
    set.
    """
    root, folder, named = recipe.data.root, recipe.run.folder, recipe.data.version
    if root is None:
        return recipe, None  # to be refused with all else that the recipe lacks
    newest = read_manifest(storage, root).fingerprint
    trained = _trained_on(folder, storage)
    if trained is not None:
        if named not in (None, trained):
            raise UserError(
                f"data.version: {folder} was trained on version {trained} of its data set, not on {named}; "
                "leave data.version out, or give the run another name (run.name=...)"
            )
        _require(root, trained, folder, newest, storage)
        return _chosen(recipe, trained, newest)
    if named is not None:
        try:
            read_manifest(storage, root, named)
        except VersionGoneError as error:
            raise UserError(f"data.version: {error}; name that, or set data.version=null for the newest") from None
        return _chosen(recipe, named, newest)
    begun = _begun_on(folder, storage)
    try:
        read_manifest(storage, root, begun)
    except VersionGoneError:
        begun = None  # nothing has been trained on it
    return _chosen(recipe, begun or newest, newest)


def _chosen(recipe: Recipe, version: str, newest: str) -> tuple[Recipe, str | None]:
    line = f"data        version {version} of {recipe.data.root}; version {newest} is newer"
    return recipe.updated({"data.version": version}), None if version == newest else line


def _require(root: str, version: str, folder: str, newest: str, storage: Storage) -> None:
    try:
        read_manifest(storage, root, version)
    except VersionGoneError:
        raise UserError(
            f"{folder} was trained on version {version} of its data set, which {root} does not have (any more: "
            f"`jobs/data.py prune` removes versions, and so does `jobs/prepare.py` beyond prepare.keep_versions); give "
            f"the run another name (run.name=...) to train on version {newest}, from its weights where "
            f"train.init_from={folder} is added, or name a data set that has the version (data.root=...)"
        ) from None


def _trained_on(folder: str, storage: Storage) -> str | None:
    """The version that there are checkpoints of: in the folder, or in those of its folds or trials."""
    for each in _folders(folder, storage):
        found = Checkpoints(each, storage, keep=2).data_fingerprint()
        if found is not None:
            return found
    return None


def _folders(folder: str, storage: Storage) -> list[str]:
    names = [name for name in storage.list(folder) if FOLD_NAME.fullmatch(name)]
    names += [join(TRIALS, name) for name in storage.list(join(folder, TRIALS))]
    return [folder, *(join(folder, name) for name in names)]


def _begun_on(folder: str, storage: Storage) -> str | None:
    """The version in the recipe that an earlier attempt has left."""
    try:
        return recipe_of(folder, storage).data.version
    except FileNotFoundError:
        return None

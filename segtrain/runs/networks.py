"""The networks that a user names: a run, an ensemble, a SavedModel, a `.keras` file, or several joined by commas."""

from collections.abc import Sequence

from segtrain.config import ClusterConfig, Recipe, load_recipe, override
from segtrain.errors import UserError
from segtrain.runs.run_folder import BEST_NAME, RunFolder, recipe_of
from segtrain.storage.files import Storage, join
from segtrain.storage.ids import join_inside
from segtrain.storage.json_text import read_json
from segtrain.storage.paths import absolute_path

ENSEMBLE_VERSION = 1
"""Format of `ensemble.json`, which makes one network of the runs of all folds."""


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
    return override(recipe.updated({**data, **here}), overrides)


def check_networks(source: str, storage: Storage) -> None:
    """Raise UserError for a part of `source` (as for `recipes_of`) where there is no trained network."""
    for part in parts_of(source):
        folder = RunFolder(part)
        places = [folder.best_model, folder.ensemble, join(part, "saved_model.pb")]
        wanted = [part] if part.endswith(".keras") else places
        if not any(storage.exists(url) for url in wanted):
            raise UserError(
                f"there is no {' or '.join(wanted)}; give the folder of a run that has finished an epoch, of an "
                f"ensemble or of a SavedModel, or a .keras file"
            )


def recipes_of(source: str, storage: Storage) -> list[tuple[str, Recipe | None]]:
    """The folder of each network that `source` names, with the recipe of its run where the folder is a run's.

    `source` is what `segtrain.inference.stored_networks.read_networks` takes: the folder of a run, of an ensemble or
    of a SavedModel, a `.keras` file, or several of these joined by commas.
    """
    found: list[tuple[str, Recipe | None]] = []
    for folder in (folder for part in parts_of(source) for folder in _folders(part, storage)):
        try:
            found.append((folder, recipe_of(folder, storage)))
        except FileNotFoundError:
            found.append((folder, None))
    return found


def parts_of(source: str) -> list[str]:
    """The networks that `source` joins by commas, of which one may be empty."""
    return [part.strip().rstrip("/") for part in source.split(",")]


def absolute_source(source: str) -> str:
    """`source` with absolute local paths, because workers run in other folders."""
    return ",".join(absolute_path(part) if part else "" for part in parts_of(source))


def members_of(folder: str, storage: Storage) -> list[str] | None:
    """The folders of the runs that the ensemble in `folder` is made of, all below it; None where there is none.

    Raises UserError for a file that `folds=all` has not written, and for one that names a folder elsewhere: whoever
    made it would choose what is loaded.
    """
    url = RunFolder(folder).ensemble
    try:
        entry = read_json(storage.read_bytes(url))
        version, names = entry["format_version"], entry["members"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("members are no names")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{url} is not what folds=all writes; train the folds again") from None
    if version != ENSEMBLE_VERSION:
        raise UserError(f"{url} has format version {version}; this segtrain reads version {ENSEMBLE_VERSION}")
    if not names:
        raise UserError(f"{url} names no member; train with folds=all")
    try:
        return [join_inside(folder, name) for name in names]
    except UserError as error:
        raise UserError(f"{url} names a member that is not below it: {error}") from None


def _folders(part: str, storage: Storage) -> list[str]:
    """The folders of the members of an ensemble, or of the one network."""
    if part.endswith(".keras"):
        return [(part.rpartition("/")[0] or ".").removesuffix(f"/{BEST_NAME}")]
    return members_of(part, storage) or [part]

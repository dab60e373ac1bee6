"""The paths that a recipe names: absolute before anything starts, and in reach of every machine."""

from segtrain.cluster.capacity import Offer, check_shared
from segtrain.config import Recipe
from segtrain.locations import check_given
from segtrain.storage.paths import absolute_output, absolute_path


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with absolute local paths, because workers may run in other folders.

    Raises UserError for the home of a user that there is not, and for a relative `run.storage` within the copy of a
    working folder that `ray job submit` uploads: Ray deletes that copy after the job.
    """
    paths = {"data.root": recipe.data.root, "train.init_from": recipe.train.init_from}
    check_given({**paths, "run.storage": recipe.run.storage, "data.node_cache": recipe.data.node_cache})
    absolutes = {field: absolute_path(path) for field, path in paths.items() if path is not None}
    return recipe.updated({**absolutes, "run.storage": absolute_output("run.storage", recipe.run.storage)})


def check_shared_paths(recipe: Recipe, offer: Offer) -> None:
    """Raise UserError for a local path where workers may run on several machines."""
    paths = {
        "data.root": recipe.data.root,
        "run.storage": recipe.run.storage,
        "train.init_from": recipe.train.init_from,
    }
    check_shared(paths, offer)

"""What is known of a run before anything starts, looked up once and handed down from there.

Nothing here imports TensorFlow or Ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from segtrain.cluster.capacity import Offer, check_offer, check_shared
from segtrain.config import Recipe
from segtrain.launch.data_version import Pinned, pinned
from segtrain.launch.earlier_run import as_it_began, check_run_folder
from segtrain.launch.workload import Size, fit_devices, workload_of
from segtrain.locations import check_given
from segtrain.memory import Plan
from segtrain.storage.files import Storage
from segtrain.storage.paths import absolute_output, absolute_path


@dataclass(frozen=True)
class PreparedRun:
    """A run that nothing known by now keeps from starting."""

    recipe: Recipe
    """With absolute paths and the version of its data set."""
    storage: Storage
    size: Size
    fitted: Plan
    """The recipe changed to fit `cluster.device_bytes`: the one that its folder holds."""
    older_version: str | None
    """A line where the data set has a newer version."""
    extend: bool
    resumes: bool
    """Whether the folder holds an earlier attempt."""

    def check_folder(self) -> bool:
        """Whether the folder still belongs to this run; see `check_run_folder`."""
        return check_run_folder(self.fitted.recipe, self.storage, extend=self.extend)

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """With fields of the recipe changed that make no difference to its data or its identity."""
        recipe = self.recipe.updated(changes)
        return replace(self, recipe=recipe, fitted=fit_devices(recipe, self.size))


def prepared(recipe: Recipe, *, extend: bool = False) -> PreparedRun:
    """Look up what a run needs to know.

    With `extend`, `train.epochs` may be larger than what the run's folder was trained for. Raises UserError where the
    data, a path or the run's folder does not fit.
    """
    recipe = as_it_began(absolute(recipe))
    return prepared_on(pinned(recipe, Storage(recipe.storage)), extend=extend)


def prepared_on(data: Pinned, *, extend: bool) -> PreparedRun:
    """`prepared` where the data set has been read."""
    size = workload_of(data.recipe, data.data_set)
    fitted = fit_devices(data.recipe, size)
    resumes = check_run_folder(fitted.recipe, data.storage, extend=extend)
    return PreparedRun(data.recipe, data.storage, size, fitted, data.older_version, extend, resumes)


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with absolute local paths, because workers may run in other folders.

    Raises UserError for the home of a user that there is not, and for a relative `run.storage` within the copy of a
    working folder that `ray job submit` uploads: Ray deletes that copy after the job.
    """
    paths = {"data.root": recipe.data.root, "train.init_from": recipe.train.init_from}
    check_given({**paths, "run.storage": recipe.run.storage, "data.node_cache": recipe.data.node_cache})
    absolutes = {field: absolute_path(path) for field, path in paths.items() if path is not None}
    return recipe.updated({**absolutes, "run.storage": absolute_output("run.storage", recipe.run.storage)})


def check_cluster(recipe: Recipe, offer: Offer) -> None:
    """Raise UserError where the cluster can never hold the run, or has several machines and a path is a local one."""
    check_offer(recipe.cluster, offer)
    paths = {
        "data.root": recipe.data.root,
        "run.storage": recipe.run.storage,
        "train.init_from": recipe.train.init_from,
    }
    check_shared(paths, offer)

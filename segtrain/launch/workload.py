"""How much a run has to do, and how it is split so that a step fits its devices."""

from dataclasses import dataclass

import pyarrow.compute as pc

from segtrain.config import Recipe
from segtrain.dataset.data_set import DataSet
from segtrain.dataset.mask_warnings import cautions
from segtrain.memory import Plan, plan
from segtrain.pipeline.selection import evaluation_selection, training_selection


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


def workload_of(recipe: Recipe, data_set: DataSet) -> Size:
    """Count what the recipe takes of a data set. Raises UserError for an unknown fold, or one without pictures."""
    training = training_selection(recipe.data, recipe.train.seed, data_set).table
    validation, validation_ids = evaluation_selection([recipe.data.fold], data_set)
    pictures = int(training.rows.sum())
    return Size(
        training_pictures=pictures,
        validation_pictures=len(validation_ids),
        steps_per_epoch=-(-pictures // recipe.train.global_batch_size),
        training_bytes=int(training.bytes.sum()),
        validation_bytes=int(validation.table.bytes.sum()),
        height=data_set.manifest.max_height,
        width=data_set.manifest.max_width,
        cautions=tuple(_cautions(recipe, data_set)),
    )


def _cautions(recipe: Recipe, data_set: DataSet) -> list[str]:
    """About the masks that the recipe trains on or is scored on."""
    used = data_set.index.filter(data_set.index["labelled"]).sort_by("id")
    if recipe.data.test_fold is not None:
        used = used.filter(pc.not_equal(used["fold"], recipe.data.test_fold))
    return cautions(*(used[name].to_pylist() for name in ("foreground", "fold", "id")))


def fit_devices(recipe: Recipe, size: Size) -> Plan:
    """The recipe changed so that a step fits `cluster.device_bytes`, and what it takes; see `segtrain.memory.plan`."""
    return plan(recipe, recipe.cluster.device_bytes, picture=(size.height, size.width))

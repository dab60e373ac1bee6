"""Whether a run's folder holds an earlier attempt of the run, or something else that must not be written over."""

from segtrain.config import Recipe, flatten, identity_differences
from segtrain.config.older_recipes import MEANT
from segtrain.errors import UserError
from segtrain.runs.run_folder import recipe_of
from segtrain.storage.files import Storage

ORDER = ("data.lanes", "data.shuffle_window_bytes")
"""What follows from the data set where a new run leaves it out, and stays with the run whatever the set becomes."""


def check_run_folder(recipe: Recipe, storage: Storage, *, extend: bool) -> bool:
    """Whether the run's folder holds an earlier attempt of this recipe; False where there is none.

    With `extend`, `train.epochs` may be larger than before. Raises UserError where it holds a run of another recipe.
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


def as_it_began(recipe: Recipe) -> Recipe:
    """The recipe as the run, folds or sweep in its folder began: in settings that are newer than that, and in `ORDER`.

    Only where the recipe itself does not set them.
    """
    try:
        earlier = flatten(recipe_of(recipe.run.folder, Storage(recipe.storage)).to_dict())
    except FileNotFoundError:
        return recipe
    given = flatten(recipe.as_set())
    kept = {field: earlier[field] for field in ORDER if given[field] is None and earlier[field] is not None}
    if recipe.model.kind == "unet":
        kept |= {field: value for field, value in MEANT.items() if earlier.get(field) == value and field not in given}
    return recipe.updated(kept) if kept else recipe

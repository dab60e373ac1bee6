"""Which version of a data set that grows a job reads: the one that it was begun on."""

from pathlib import Path

import numpy as np
import pytest

from segtrain.config import Recipe, override
from segtrain.dataset.manifest import Manifest
from segtrain.dataset.versions import prune
from segtrain.errors import UserError
from segtrain.launch.data_version import pinned
from segtrain.launch.earlier_run import as_it_began
from segtrain.launch.workload import workload_of
from segtrain.prepare.prepare_set import prepare
from segtrain.runs.networks import recipe_to_score
from segtrain.storage.files import Storage
from segtrain.training.checkpoint import Checkpoints, Cursor, facts_of
from tests.support.small_sources import draw

STORAGE = Storage()
ORDER = ["data.lanes=16", "data.shuffle_window_bytes=16777216"]
"""What a recipe without them would take from its data set."""


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "set")


def make(root: str, shade: int) -> Manifest:
    """The next version of the data set."""
    return prepare(draw(Path(root).parent / "source", shade), root, parallel=False)


@pytest.fixture
def recipe(tmp_path: Path, root: str) -> Recipe:
    fields = [f"run.storage={tmp_path}", "run.name=test", f"data.root={root}", *ORDER]
    return override(Recipe(), fields)


def begin(recipe: Recipe) -> None:
    """Leave what a run has left before its first checkpoint."""
    STORAGE.write_bytes(f"{recipe.run.folder}/recipe.yaml", pinned(recipe, STORAGE).recipe.to_yaml().encode())


def train(recipe: Recipe, version: str) -> None:
    """Leave a checkpoint that was trained on a version, and the recipe as segtrain e885e46 wrote it."""
    checkpoints = Checkpoints(recipe.run.folder, STORAGE, keep=2)
    checkpoints.save({"model/0000": np.zeros(1)}, Cursor(step=3), facts_of(recipe, version), recipe)
    checkpoints.wait()


def version_of(recipe: Recipe) -> str | None:
    return pinned(recipe, STORAGE).recipe.data.version


def test_a_new_run_begins_on_the_newest_version(recipe: Recipe, root: str) -> None:
    make(root, 0)
    newest = make(root, 1)
    chosen = pinned(recipe, STORAGE)
    assert chosen.recipe == override(recipe, [f"data.version={newest.fingerprint}"])
    assert chosen.older_version is None


def test_a_run_goes_on_with_its_own_version_and_says_so(recipe: Recipe, root: str) -> None:
    own = make(root, 0)
    train(recipe, own.fingerprint)
    newest = make(root, 1)
    assert version_of(recipe) == own.fingerprint
    chosen = pinned(recipe, STORAGE)
    line = chosen.older_version or ""
    assert own.fingerprint in line
    assert newest.fingerprint in line
    size = workload_of(chosen.recipe, chosen.data_set)
    assert size.training_pictures + size.validation_pictures == own.pictures


def test_a_run_without_a_checkpoint_goes_on_with_its_own_version_while_there_is_one(recipe: Recipe, root: str) -> None:
    own = make(root, 0)
    begin(recipe)
    newest = make(root, 1)
    assert version_of(recipe) == own.fingerprint
    prune(STORAGE, root)
    assert version_of(recipe) == newest.fingerprint


def test_a_run_whose_version_was_pruned_says_how_to_go_on(recipe: Recipe, root: str) -> None:
    own = make(root, 0)
    train(recipe, own.fingerprint)
    newest = make(root, 1)
    prune(STORAGE, root)
    with pytest.raises(
        UserError,
        match=rf"test was trained on version {own.fingerprint} .* does not have .*run\.name=.* {newest.fingerprint}, "
        rf"from its weights where train\.init_from={recipe.run.folder} is added",
    ):
        pinned(recipe, STORAGE)


@pytest.mark.parametrize("member", ["fold-2", "trials/seventh"])
def test_folds_and_trials_that_are_still_to_come_read_the_version_of_the_others(
    recipe: Recipe, root: str, member: str
) -> None:
    own = make(root, 0)
    storage, _, name = f"{recipe.run.folder}/{member}".rpartition("/")
    train(override(recipe, [f"run.storage={storage}", f"run.name={name}"]), own.fingerprint)
    make(root, 1)
    assert version_of(recipe) == own.fingerprint


def test_a_version_may_be_named(recipe: Recipe, root: str) -> None:
    older = make(root, 0)
    newest = make(root, 1)
    assert version_of(override(recipe, [f"data.version={older.fingerprint}"])) == older.fingerprint
    with pytest.raises(
        UserError, match=rf"data\.version: .*has no version {'0' * 16} .*{newest.fingerprint} now; name"
    ):
        pinned(override(recipe, [f"data.version={'0' * 16}"]), STORAGE)
    train(recipe, older.fingerprint)
    with pytest.raises(UserError, match=r"data\.version: .*trained on version .*; leave data\.version out"):
        pinned(override(recipe, [f"data.version={newest.fingerprint}"]), STORAGE)


def test_the_version_is_no_part_of_what_makes_two_runs_different(recipe: Recipe, root: str) -> None:
    make(root, 0)
    assert pinned(recipe, STORAGE).recipe.fingerprint() == recipe.fingerprint()


def test_networks_are_scored_on_the_newest_version_whatever_they_were_trained_on(recipe: Recipe, root: str) -> None:
    make(root, 0)
    begin(recipe)
    assert recipe_to_score(recipe.run.folder, root, []).data.version is None


def order_of(recipe: Recipe) -> tuple[int | None, int | None]:
    return recipe.data.lanes, recipe.data.shuffle_window_bytes


def without_order(recipe: Recipe, *fields: str) -> Recipe:
    return override(recipe, ["data.lanes=null", "data.shuffle_window_bytes=null", *fields])


def test_a_new_run_takes_its_lanes_from_the_data_set_and_keeps_them_while_that_grows(recipe: Recipe, root: str) -> None:
    asked = without_order(recipe, "train.global_batch_size=24")
    make(root, 0)
    chosen = pinned(as_it_began(asked), STORAGE).recipe
    assert order_of(chosen) == (16, 16 * 2**20), "the set has too few row groups for 24"
    for workers in (4, 12):
        assert order_of(pinned(override(asked, [f"cluster.workers={workers}"]), STORAGE).recipe) == order_of(chosen)
    earlier = override(asked, ["data.lanes=24", "data.shuffle_window_bytes=8388608"])
    begin(earlier)
    assert order_of(pinned(as_it_began(asked), STORAGE).recipe) == (24, 8388608)
    make(root, 1)
    assert order_of(pinned(as_it_began(asked), STORAGE).recipe) == (24, 8388608)


def test_folds_and_trials_have_the_lanes_of_what_they_belong_to(recipe: Recipe, root: str) -> None:
    make(root, 0)
    whole = pinned(without_order(recipe, "train.global_batch_size=12"), STORAGE)
    own = whole.recipe.updated({"data.fold": 1, "run.name": "fold-1", "train.global_batch_size": 8})
    assert order_of(whole.member(own).recipe) == order_of(whole.recipe) == (12, 16 * 2**20)

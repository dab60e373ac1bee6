"""What a run's folder may hold where a run is to begin there."""

import json
from pathlib import Path

import pytest
import yaml

from segtrain.errors import UserError
from segtrain.launch.earlier_run import as_it_began, check_run_folder
from segtrain.storage.files import Storage
from tests.support.kept_recipes import keep, run_in


def test_an_empty_folder_is_a_new_run(tmp_path: Path) -> None:
    assert not check_run_folder(run_in(tmp_path), Storage(), extend=False)


def test_the_same_recipe_goes_on_whatever_is_no_part_of_its_identity(tmp_path: Path) -> None:
    keep(run_in(tmp_path))
    changed = run_in(tmp_path, "cluster.workers=2", "train.per_replica_batch_size=2", "data.cache=memory")
    assert check_run_folder(changed, Storage(), extend=False)


def test_another_recipe_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    keep(run_in(tmp_path))
    changed = run_in(tmp_path, "model.filters=32", "optimizer.learning_rate=0.1")
    with pytest.raises(UserError, match=r"another recipe \(model.filters: 16 -> 32; optimizer.learning_rate: 0.001"):
        check_run_folder(changed, Storage(), extend=True)


def test_more_epochs_need_extend(tmp_path: Path) -> None:
    keep(run_in(tmp_path, "train.epochs=3"))
    longer = run_in(tmp_path, "train.epochs=5")
    with pytest.raises(UserError, match=r"train.epochs: 3 -> 5\); train on with --extend"):
        check_run_folder(longer, Storage(), extend=False)
    assert check_run_folder(longer, Storage(), extend=True)


def test_fewer_epochs_are_refused_even_with_extend(tmp_path: Path) -> None:
    keep(run_in(tmp_path, "train.epochs=3"))
    with pytest.raises(UserError, match=r"train.epochs: 3 -> 2\); give the run another name"):
        check_run_folder(run_in(tmp_path, "train.epochs=2"), Storage(), extend=True)


def test_a_recipe_of_another_segtrain_is_refused(tmp_path: Path) -> None:
    keep(run_in(tmp_path))
    (tmp_path / "test/recipe.yaml").write_text("model: {wings: 2}\n")
    with pytest.raises(UserError, match=r"test/recipe.yaml is not a recipe that this segtrain reads"):
        check_run_folder(run_in(tmp_path), Storage(), extend=False)


@pytest.mark.parametrize("folds", ["one", "all"])
def test_the_order_of_samples_stays_as_it_began_unless_the_recipe_names_one(tmp_path: Path, folds: str) -> None:
    earlier = keep(run_in(tmp_path, "data.lanes=16", "data.shuffle_window_bytes=16777216", f"folds={folds}"))
    again = as_it_began(run_in(tmp_path, f"folds={folds}"))
    assert again == earlier
    assert check_run_folder(again, Storage(), extend=False)
    named = as_it_began(run_in(tmp_path, f"folds={folds}", "data.lanes=32"))
    assert (named.data.lanes, named.data.shuffle_window_bytes) == (32, 16777216)
    with pytest.raises(UserError, match=r"another recipe \(data.lanes: 16 -> 32\)"):
        check_run_folder(named, Storage(), extend=False)


def test_more_workers_than_an_earlier_run_has_lanes_are_refused(tmp_path: Path) -> None:
    keep(run_in(tmp_path, "data.lanes=16", "train.global_batch_size=32"))
    with pytest.raises(UserError, match=r"cluster.workers is 32 but data.lanes is 16; .*raise data.lanes in a new run"):
        as_it_began(run_in(tmp_path, "train.global_batch_size=32", "cluster.workers=32"))


def test_a_recipe_as_segtrain_e885e46_wrote_it_keeps_its_16_lanes(tmp_path: Path) -> None:
    written = json.loads((Path(__file__).parents[1] / "recipes_e885e46.json").read_text())["quickstart.yaml"]
    (tmp_path / "test").mkdir()
    (tmp_path / "test/recipe.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    again = as_it_began(run_in(tmp_path))
    assert (again.data.lanes, again.data.shuffle_window_bytes) == (16, 16777216)

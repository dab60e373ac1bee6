"""What is known of the networks that a job is given, before any of them is loaded."""

import json
from pathlib import Path

import pytest

from segtrain.config import Recipe, override
from segtrain.errors import UserError
from segtrain.runs.networks import check_networks, members_of, recipe_to_score, recipes_of
from segtrain.storage.files import Storage
from tests.support.kept_recipes import keep, run_in


def test_a_run_is_scored_where_its_folder_is_now_with_its_own_settings(tmp_path: Path) -> None:
    kept = keep(run_in(tmp_path, "model.filters=8", "cluster.workers=4", "data.root=/old", "data.test_fold=3"))
    Path(kept.run.folder).rename(tmp_path / "moved")
    recipe = recipe_to_score(f"{tmp_path}/moved/", "/new", ["data.fold=3"])
    assert recipe.data.root == "/new"
    assert recipe.data.fold == 3, "its test fold may be scored"
    assert recipe.model.filters == 8
    assert recipe.cluster.workers == 1
    assert recipe_to_score(f"{tmp_path}/moved", "/new", []).data.fold == 0


def test_an_ensemble_is_scored_on_its_members_test_fold(tmp_path: Path) -> None:
    for fold in (0, 1):
        keep(run_in(tmp_path, f"run.name=fold-{fold}", f"data.fold={fold}", "data.test_fold=2", "folds=all"))
    (tmp_path / "ensemble.json").write_text('{"format_version": 1, "members": ["fold-0", "fold-1"]}')
    recipe = recipe_to_score(str(tmp_path), "/set", [])
    assert (recipe.data.fold, recipe.data.test_fold, recipe.folds) == (2, None, "one")
    folders = [folder for folder, _ in recipes_of(str(tmp_path), Storage())]
    assert folders == [f"{tmp_path}/fold-0", f"{tmp_path}/fold-1"]


def test_a_model_without_a_recipe_has_the_defaults(tmp_path: Path) -> None:
    keep(run_in(tmp_path, "model.filters=8"))
    source = f"{tmp_path}/test/best/model.keras, {tmp_path}/saved, other.keras"
    found = recipes_of(source, Storage())
    assert [folder for folder, _ in found] == [f"{tmp_path}/test", f"{tmp_path}/saved", "."]
    assert [recipe is not None for _, recipe in found] == [True, False, False]
    assert recipe_to_score("other.keras", "/set", []) == override(Recipe(), ["data.root=/set"])


def test_where_there_is_no_network_the_places_are_named(tmp_path: Path) -> None:
    keep(run_in(tmp_path))
    with pytest.raises(UserError, match=r"there is no .*/test/best/model.keras or .*saved_model.pb; give the folder"):
        check_networks(f"{tmp_path}/test", Storage())
    (tmp_path / "a.keras").touch()
    check_networks(f"{tmp_path}/a.keras", Storage())
    with pytest.raises(UserError, match=r"there is no .*/b.keras; give"):
        check_networks(f"{tmp_path}/a.keras, {tmp_path}/b.keras", Storage())


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_an_entry_of_an_ensemble_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "ensemble.json").write_text(text)
    with pytest.raises(UserError, match=r"ensemble.json is not what folds=all writes"):
        recipes_of(str(tmp_path), Storage())


def test_members_are_folders_below_the_ensembles(tmp_path: Path) -> None:
    assert members_of(str(tmp_path), Storage()) is None
    (tmp_path / "ensemble.json").write_text('{"format_version": 1, "members": ["fold-0", "deeper/fold-1"]}')
    assert members_of(str(tmp_path), Storage()) == [f"{tmp_path}/fold-0", f"{tmp_path}/deeper/fold-1"]


@pytest.mark.parametrize(
    "name", ["../../runs/ok", "..", ".", "/etc", "s3://bucket/run", "a/../../b", "a\\b", "a\nb", ""]
)
def test_members_elsewhere_are_refused_wherever_they_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "ensemble.json").write_text(json.dumps({"format_version": 1, "members": ["fold-0", name]}))
    with pytest.raises(UserError, match=r"ensemble\.json names a member that is not below it: ") as caught:
        members_of(str(tmp_path), Storage())
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="names a member"):
        recipes_of(str(tmp_path), Storage())


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"format_version": 1, "members": "ab"}', "[" * 100_000, '{"members": [1]}']
)
def test_what_folds_have_not_written_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "ensemble.json").write_text(text)
    with pytest.raises(UserError, match=r"ensemble\.json is not what folds=all writes; train the folds again"):
        members_of(str(tmp_path), Storage())
    check_networks(str(tmp_path), Storage())  # which only looks whether there is something

"""Recipes: defaults, files, overrides, errors that name the field, identity."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from segtrain.config import (
    AdamConfig,
    CosineSchedule,
    FCNConfig,
    Recipe,
    RMSpropConfig,
    SGDConfig,
    UNetConfig,
    identity_differences,
    known_fields,
    load_recipe,
    override,
)
from segtrain.errors import UserError
from segtrain.tune.space import check_space
from tests.support.places import JOBS

RECIPES = sorted((JOBS / "recipes").glob("*.yaml"))


def wrong(*overrides: str) -> str:
    """The sentence that the user sees."""
    with pytest.raises(UserError) as caught:
        override(Recipe(), overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "geheim" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_reads_and_is_named_after_its_file(path: Path) -> None:
    assert load_recipe(path).run.name == path.stem


def test_the_recipes_that_are_promised_ship() -> None:
    single = {"quickstart", "article_fcn", "article_unet", "carvana", "nuclei", "parked_cars"}
    assert single | {"sweep_quick", "sweep_carvana"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_that_are_called_sweeps_have_a_space_that_can_be_searched(path: Path) -> None:
    recipe = load_recipe(path)
    assert bool(recipe.tune.space) == path.stem.startswith("sweep_")
    if recipe.tune.space:
        check_space(recipe)
        assert recipe.tune.max_trials >= 12
        ends = recipe.train.epochs if recipe.tune.clock == "epochs" else float("inf")
        assert recipe.tune.grace * recipe.tune.reduction <= ends, "else no trial is ever stopped"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_survives_plain_dicts_and_its_own_yaml(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().train.epochs = 3  # type: ignore[misc]


def test_an_override_changes_one_field_and_leaves_its_neighbours() -> None:
    recipe = override(
        Recipe(), ["optimizer.learning_rate=3e-4", "loss.terms.bce=0.5", "model.dropout=[0,0,0.1,0.2,0.3]"]
    )
    assert recipe.optimizer == AdamConfig(learning_rate=3e-4)
    assert (recipe.loss.terms.dice, recipe.loss.terms.bce) == (1.0, 0.5)
    assert isinstance(recipe.model, UNetConfig)
    assert recipe.model.dropout == (0.0, 0.0, 0.1, 0.2, 0.3)


def test_numbers_with_an_exponent_are_numbers_in_files_too(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("optimizer:\n  learning_rate: 3e-4\n  epsilon: 1.5E-8\n")
    assert load_recipe(tmp_path / "r.yaml").optimizer == AdamConfig(learning_rate=3e-4, epsilon=1.5e-8)


def test_words_that_old_yaml_takes_for_truth_values_stay_words(tmp_path: Path) -> None:
    assert override(Recipe(), ["data.cache=off"]).data.cache == "off"
    assert override(Recipe(), ["train.deterministic=true"]).train.deterministic is True
    (tmp_path / "r.yaml").write_text("run: {name: on}\n")
    assert load_recipe(tmp_path / "r.yaml").run.name == "on"


def test_another_kind_has_its_own_defaults_and_keeps_what_was_set() -> None:
    recipe = override(Recipe(), ["model.filters=8", "model.kind=fcn", "optimizer.kind=sgd", "optimizer.momentum=0.9"])
    assert recipe.model == FCNConfig(filters=8)
    assert recipe.optimizer == SGDConfig(momentum=0.9)
    assert override(Recipe(), ["schedule.kind=cosine"]).schedule == CosineSchedule()
    assert override(Recipe(), ["optimizer.kind=rmsprop"]).optimizer == RMSpropConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle.filters=3", "unknown key 'modle'; did you mean 'model'?"),
        ("model.filtres=3", "unknown key 'model.filtres'; did you mean 'model.filters'?"),
        ("optimizer.lr=1", "unknown key 'optimizer.lr'"),
        ("model.kind=vnet", "model.kind: 'vnet' is not one of 'unet', 'fcn'"),
        ("cluster.workers=[4, 2]", "cluster.workers: [4, 2] is no range; give one number, or the fewest and the most"),
        ("cluster.workers=0", "cluster.workers: should be greater than or equal to 1"),
        ("cluster.stuck_after_s=60", "cluster.stuck_after_s is 60 s and storage.deadline_s is 120 s"),
        ("train.epochs=0", "train.epochs: should be greater than or equal to 1 (it is 0)"),
        ("train.epochs=1.5", "train.epochs: should be a whole number (it is 1.5)"),
        ("model.dropout=2", "model.dropout"),
        ("optimizer.epsilon=small", "optimizer.epsilon: should be a finite number (it is 'small')"),
        ("model.dropout=[0.1,0.2]", "dropout has 2 rates; depth 4 needs 5"),
        ("data.test_fold=0", "fold and test_fold are both 0"),
        ("loss.terms={dice: 0.0}", "every term weighs 0"),
        ("run.name=a/b", "run.name"),
        ("train.global_batch_size=0", "train.global_batch_size"),
        ("model=3", "model"),
        ("run.name.first=x", "run.name is a value, not a section"),
        ("train.epochs", "'train.epochs' is not key=value"),
        ("train.epochs=[1", "train.epochs: the value '[1' is not YAML"),
        ("train.epochs=1:30", "train.epochs: should be a whole number; write it in decimal"),
        ("train.epochs=010", "write it in decimal"),
        ("train.epochs=0x10", "write it in decimal"),
        ("train.epochs=1_0", "write it in decimal"),
        ("train.epochs=5 #7", "train.epochs: should be a whole number; write it in decimal"),
        (
            f"train.seed={'9' * 5000}",
            "train.seed: should be a whole number; write it in decimal, in at most 18 digits",
        ),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate: should be a finite number; write it in decimal"),
        ("optimizer.learning_rate=1e999", "optimizer.learning_rate: should be a finite number"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate: should be a finite number (it is 'nan')"),
        ("optimizer.learning_rate=-1:30.5", "write it in decimal"),
        ("train.seed=-1", "train.seed: should be greater than or equal to 0"),
        ("prepare.seed=4294967296", "prepare.seed: should be less than 4294967296"),
        ("storage.timeout_s=1e300", "storage.timeout_s: should be less than or equal to 1000000000"),
        ("tune.grace=.nan", "tune.grace: should be a finite number; write it in decimal"),
        ("optimizer.momentum=0.5", "unknown key 'optimizer.momentum'; only optimizer.kind sgd or rmsprop has it"),
        ("run.storage=", "run.storage: should have at least 1 character"),
        ("run.storage=s3://", "run.storage: s3:// names no bucket; write s3://bucket/key"),
        ("data.root=s3:/x", "data.root: s3:/x is no S3 URL"),
        ("source.path=s3:///b/x", "source.path: s3:///b/x names no bucket"),
        ("train.init_from=s3://b//x", "train.init_from: s3://b//x has an empty name"),
        ("tune.start_from=[a, 's3:/x']", "tune.start_from.1: s3:/x is no S3 URL"),
        ("data.node_cache=s3://b/x", "data.node_cache: s3://b/x is no local folder"),
        ("source.path=a\0b", "source.path: it holds NUL"),
        ("source.path=a\udcffb", "source.path: should be a valid string"),
        ("storage.endpoint_url=127.0.0.1:9", "storage.endpoint_url: '127.0.0.1:9' does not say how the server is"),
        ("storage.endpoint_url=http://a:geheim@h", "storage.endpoint_url: "),
        ("storage={endpoint_url: [http://a:geheim@h]}", "storage.endpoint_url: "),
        ("storage={endpoint_url: http://a:geheim@h", "storage: the value '{endpoint_url: http://***@h' is not YAML"),
        ("a\nb.c=1", "unknown key 'a\\nb'"),
    ],
)
def test_a_mistake_names_the_field_and_the_fix(text: str, message: str) -> None:
    assert message in wrong(text)


def test_a_batch_smaller_than_the_replicas_is_refused() -> None:
    message = wrong("cluster.workers=4", "cluster.cpu_replicas_per_worker=2", "train.global_batch_size=7")
    assert "train.global_batch_size is 7 but there are 8 replicas" in message
    assert "set it to at least 8" in message


def test_more_workers_than_lanes_are_refused() -> None:
    message = wrong("cluster.workers=5", "data.lanes=4")
    assert "cluster.workers is 5 but data.lanes is 4" in message


def test_workers_are_a_number_or_a_range(tmp_path: Path) -> None:
    recipe = override(Recipe(), ["cluster.workers=[2, 8]"])
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "r.yaml").cluster.workers == (2, 8)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    five = recipe.updated({"cluster.workers": 5})
    assert (five.cluster.min_workers, five.cluster.max_workers) == (5, 5)
    assert not identity_differences(recipe, five)


@pytest.mark.parametrize("text", ["[1, 2]", "model: [", "just words"])
def test_a_file_that_is_no_recipe_is_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_recipe(tmp_path / "bad.yaml")


def test_a_missing_recipe_says_where_recipes_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no such recipe; see jobs/recipes/"):
        load_recipe(tmp_path / "none.yaml")


def test_a_pipe_without_a_writer_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match=r"pipe\.yaml is no file but a pipe; give a recipe file"):
        load_recipe(tmp_path / "pipe.yaml")


def test_a_pipe_of_a_shell_is_read_to_its_end() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"model: {filters: 3}\nrun: {name: piped}\n")
    os.close(writer)
    try:
        assert load_recipe(f"/proc/self/fd/{reader}").model.filters == 3
    finally:
        os.close(reader)


def test_two_ways_of_grouping_are_one_too_many() -> None:
    assert "source.group_regex and source.group_run are set" in wrong("source.group_regex=a", "source.group_run=2")


def test_where_data_lies_and_how_work_is_split_do_not_make_another_run() -> None:
    moved = ["data.root=s3://b/d", "cluster.workers=2", "train.per_replica_batch_size=2", "data.cache=off"]
    assert override(Recipe(), moved).fingerprint() == Recipe().fingerprint()
    assert identity_differences(Recipe(), override(Recipe(), moved)) == []


@pytest.mark.parametrize(
    "text",
    ["model.filters=32", "loss.terms.bce=2.0", "optimizer.epsilon=1e-3", "train.seed=1", "data.lanes=8", "data.fold=1"],
)
def test_what_is_computed_makes_another_run_and_is_named(text: str) -> None:
    other = override(Recipe(), [text])
    assert other.fingerprint() != Recipe().fingerprint()
    (difference,) = identity_differences(Recipe(), other)
    assert difference.startswith(f"{text.partition('=')[0]}: ")


def test_known_fields_are_those_of_the_chosen_kinds() -> None:
    assert "model.residual" in known_fields({})
    assert "model.residual" not in known_fields({"model": {"kind": "fcn"}})


@given(st.floats(1e-12, 10.0), st.integers(1, 10**6), st.sampled_from(["float32", "mixed_float16"]))
def test_any_value_that_fits_comes_back_from_plain_dicts(rate: float, epochs: int, precision: str) -> None:
    recipe = override(
        Recipe(), [f"optimizer.learning_rate={rate!r}", f"train.epochs={epochs}", f"train.precision={precision}"]
    )
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.optimizer.learning_rate == rate

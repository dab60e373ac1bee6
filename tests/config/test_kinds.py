"""Another kind of a section: what was set stays, no default carries over, and what is dropped is said."""

import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from segtrain.config import (
    AdamConfig,
    AdamWConfig,
    CarvanaSource,
    CosineSchedule,
    FCNConfig,
    PlateauSchedule,
    Recipe,
    SGDConfig,
    UNetConfig,
    load_recipe,
    override,
    recorded,
)
from segtrain.config.recipe import flatten
from segtrain.errors import UserError
from segtrain.launch.preflight import absolute
from segtrain.tune import space

HERE = Path(__file__).parents[1]
RECIPES = sorted((HERE.parent / "jobs" / "recipes").glob("*.yaml"))
WARM = """
optimizer: {learning_rate: 2e-3}
schedule: {kind: cosine, warmup_epochs: 2, final_fraction: 0.1}
"""

FROM_THE_DATA_SET = ("data.lanes", "data.shuffle_window_bytes", "data.read_ahead_bytes")
"""Fields that were 16, 16 MiB and 256 MiB; without a value they follow from the data set."""


@pytest.fixture
def warm(tmp_path: Path) -> Path:
    (tmp_path / "warm.yaml").write_text(WARM)
    return tmp_path / "warm.yaml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_resolves_to_what_it_was(path: Path) -> None:
    before = json.loads((HERE / "recipes_e885e46.json").read_text())[path.name]
    now = flatten(load_recipe(path).to_dict())
    expected = flatten(before) | dict.fromkeys(FROM_THE_DATA_SET)
    assert {field: now[field] for field in flatten(before)} == expected


def test_what_a_recipe_set_stays_under_another_kind(warm: Path) -> None:
    recipe = load_recipe(warm, ["optimizer.kind=adamw", "schedule.kind=plateau"])
    assert recipe.optimizer == AdamWConfig(learning_rate=2e-3)
    assert recipe.schedule == PlateauSchedule(warmup_epochs=2)


def test_what_is_dropped_is_said(warm: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "segtrain"):
        load_recipe(warm, ["schedule.kind=plateau"])
    told = "warning: schedule.final_fraction=0.1 is dropped, as schedule.kind=plateau has none"
    assert caplog.messages == [told]


@pytest.mark.parametrize(
    "order",
    itertools.permutations(
        ["optimizer.kind=sgd", "optimizer.momentum=0.9", "optimizer={kind: adamw, learning_rate: 0.5, epsilon: 1e-3}"]
    ),
)
def test_the_order_of_arguments_does_not_matter(order: Sequence[str]) -> None:
    assert override(Recipe(), order).optimizer == SGDConfig(learning_rate=0.5, momentum=0.9)


def test_a_field_that_the_kind_of_the_same_command_lacks_is_a_mistake_in_any_order() -> None:
    for order in itertools.permutations(["optimizer.kind=sgd", "optimizer.weight_decay=0.1"]):
        with pytest.raises(UserError, match=r"optimizer.weight_decay'; only optimizer.kind adamw has it"):
            override(Recipe(), order)


def test_a_default_of_one_kind_never_becomes_a_setting_of_another(tmp_path: Path) -> None:
    assert override(Recipe(), ["optimizer.kind=sgd"]).optimizer == SGDConfig()
    twice = override(override(Recipe(), ["optimizer.beta_1=0.8"]), ["optimizer.kind=sgd"])
    assert twice.optimizer == SGDConfig()
    there_and_back = override(override(Recipe(), ["optimizer.kind=sgd"]), ["optimizer.kind=adam"])
    assert there_and_back.optimizer == AdamConfig()
    (tmp_path / "recorded.yaml").write_text(Recipe().to_yaml())
    assert load_recipe(tmp_path / "recorded.yaml", ["optimizer.kind=sgd"]).optimizer == SGDConfig()
    assert override(recorded(Recipe().to_yaml()), ["optimizer.kind=sgd"]).optimizer == SGDConfig()
    assert override(Recipe.from_dict(Recipe().to_dict()), ["optimizer.kind=sgd"]).optimizer == SGDConfig()


def test_a_default_that_was_written_down_is_a_setting(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("optimizer: {learning_rate: 1e-3}\n")
    assert load_recipe(tmp_path / "r.yaml", ["optimizer.kind=sgd"]).optimizer == SGDConfig(learning_rate=1e-3)
    recipe = absolute(load_recipe(tmp_path / "r.yaml")).updated({"cluster.workers": 2})
    assert override(recipe, ["optimizer.kind=sgd"]).optimizer == SGDConfig(learning_rate=1e-3)


def test_a_recorded_recipe_keeps_what_differs_from_its_kind(warm: Path) -> None:
    again = override(recorded(load_recipe(warm).to_yaml()), ["optimizer.kind=sgd"])
    assert again.optimizer == SGDConfig(learning_rate=2e-3)
    assert again.schedule == CosineSchedule(warmup_epochs=2, final_fraction=0.1)


def test_other_changes_on_the_way_turn_no_default_into_a_setting(warm: Path) -> None:
    recipe = absolute(load_recipe(warm, ["data.root=x"])).updated({"cluster.workers": 2})
    assert override(recipe, ["model.kind=fcn", "optimizer.kind=rmsprop"]).model == FCNConfig()
    assert recorded(recipe.to_yaml()) == recipe == Recipe.from_dict(recipe.to_dict())


def test_a_source_keeps_its_path_under_another_kind() -> None:
    recipe = override(Recipe(), ["source.path=a", "source.kind=carvana"])
    assert recipe.source == CarvanaSource(path="a")


def test_a_kind_that_there_is_not_is_named_and_drops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"optimizer.kind: 'adamx' is not one of"):
        override(Recipe(), ["optimizer.beta_1=0.8", "optimizer.kind=adamx"])
    assert not caplog.messages


class TestAxes:
    def searching(self, warm: Path) -> Recipe:
        axes = {
            "optimizer.kind": {"choice": ["adam", "sgd"]},
            "optimizer.momentum": {"choice": [0.5], "when": {"optimizer.kind": "sgd"}},
            "schedule.kind": {"choice": ["plateau"]},
        }
        recipe = load_recipe(warm)
        return recipe.updated({"tune.space": {}}).updated({"tune": {"space": axes, "search": "grid"}})

    def test_what_the_recipe_set_stays_and_an_axis_adds_to_it(self, warm: Path) -> None:
        recipe = self.searching(warm)
        space.check_space(recipe)
        made = [space.recipe_at(recipe, point) for point in space.grid(recipe)]
        assert [one.optimizer for one in made] == [
            AdamConfig(learning_rate=2e-3),
            SGDConfig(learning_rate=2e-3, momentum=0.5),
        ]
        assert {one.schedule for one in made} == {PlateauSchedule(warmup_epochs=2)}

    def test_a_default_does_not_carry_over(self) -> None:
        recipe = Recipe().updated({"tune": {"space": {"optimizer.kind": {"choice": ["sgd"]}}}})
        assert space.recipe_at(absolute(recipe), {"optimizer.kind": "sgd"}).optimizer == SGDConfig()

    def test_the_order_of_axes_does_not_matter(self) -> None:
        point = {"optimizer.learning_rate": 0.5, "model.filters": 4, "optimizer.kind": "sgd", "model.kind": "fcn"}
        recipe = Recipe().updated({"tune": {"space": {name: {"choice": [one]} for name, one in point.items()}}})
        for order in itertools.permutations(point.items()):
            made = space.recipe_at(recipe, dict(order))
            assert (made.optimizer, made.model) == (SGDConfig(learning_rate=0.5), FCNConfig(filters=4))

    def test_what_is_dropped_is_said(self, warm: Path) -> None:
        told = "tune.space: schedule.final_fraction=0.1 is dropped, as schedule.kind=plateau has none"
        assert space.dropped(self.searching(warm)) == [told]

    def test_a_starting_point_of_another_kind_is_found(self, warm: Path) -> None:
        start = override(Recipe(), ["optimizer.kind=sgd", "optimizer.momentum=0.5", "schedule.kind=plateau"])
        point = space.point_of(self.searching(warm), start, "start.yaml")
        assert point == {"optimizer.kind": "sgd", "optimizer.momentum": 0.5, "schedule.kind": "plateau"}


def test_what_another_recipe_computes_is_taken_over_and_nothing_else() -> None:
    mine = override(Recipe(), ["data.root=new", "train.epochs=5", "storage.timeout_s=7", "optimizer.kind=sgd"])
    other = override(Recipe(), ["data.root=old", "train.epochs=9", "evaluation.panels=0", "model.filters=4"])
    made = mine.computing(other)
    assert (made.data.root, made.train.epochs, made.storage.timeout_s) == ("new", 9, 7)
    assert (made.optimizer, made.model, made.evaluation.panels) == (AdamConfig(), UNetConfig(filters=4), 0)
    assert made.fingerprint() == other.fingerprint()

"""The search space: which values make a recipe, which points there are, and how Optuna sees them."""

from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.config import Axis, Recipe, override
from segtrain.errors import UserError
from segtrain.tune import space


def searching(**axes: Any) -> Recipe:
    """The default recipe with a space; `__` stands for a dot and `_AND_` for a comma."""
    names = {name.replace("__", ".").replace("_AND_", ","): axis for name, axis in axes.items()}
    tree = Recipe().to_dict()
    tree["tune"]["space"] = names
    return Recipe.from_dict(tree)


def refusal(recipe: Recipe) -> str:
    with pytest.raises(UserError) as caught:
        space.check_space(recipe)
    return str(caught.value)


class TestCheck:
    def test_an_empty_space_is_refused(self) -> None:
        assert refusal(Recipe()).startswith("tune.space is empty; name at least one field")

    def test_a_field_that_there_is_not_is_named_with_the_nearest_one(self) -> None:
        told = refusal(searching(model__filter={"choice": [8]}))
        assert told == (
            "tune.space.model.filter: 8 makes no recipe: unknown key 'model.filter'; did you mean 'model.filters'?"
        )

    def test_a_value_that_its_field_cannot_have_is_named(self) -> None:
        assert "tune.space.model.depth: 12 makes no recipe: model.depth" in refusal(
            searching(model__depth={"choice": [2, 12]})
        )

    @pytest.mark.parametrize("name", ["run.name", "cluster.workers", "data.root", "data.fold", "tune.seed", "folds"])
    def test_fields_that_would_make_scores_incomparable_are_refused(self, name: str) -> None:
        assert f"{name} cannot be searched" in refusal(searching(**{name.replace(".", "__"): {"choice": [1]}}))

    def test_a_field_in_two_axes_is_refused(self) -> None:
        told = refusal(searching(data__height={"choice": [96]}, data__height_AND_data__width={"choice": [[96, 128]]}))
        assert told == "tune.space: data.height is in 'data.height' and in 'data.height,data.width'; search it once"

    def test_joined_fields_need_a_value_each(self) -> None:
        assert "96 must be a list of 2 values" in refusal(searching(data__height_AND_data__width={"choice": [96]}))

    def test_a_field_of_another_kind_is_searched_where_its_condition_holds(self) -> None:
        momentum = {"uniform": [0.0, 0.9], "when": {"optimizer.kind": "sgd"}}
        space.check_space(searching(optimizer__momentum=momentum))
        assert "unknown key 'optimizer.momentum'" in refusal(searching(optimizer__momentum={"uniform": [0.0, 0.9]}))

    def test_a_range_has_no_grid(self) -> None:
        recipe = override(searching(model__dropout={"uniform": [0.0, 0.5]}), ["tune.search=grid"])
        assert "a range has no grid" in refusal(recipe)


@pytest.mark.parametrize(
    ("axis", "told"),
    [
        ({"uniform": [2, 1]}, "uniform [2, 1] is the wrong way round; put the lower first"),
        ({"loguniform": [0, 1]}, "loguniform starts at 0; it must be above 0"),
        ({"quniform": [0, 1, 0]}, "quniform has a step of 0; it must be above 0 and within the range"),
        ({"choice": [1], "uniform": [0, 1]}, "give exactly one of choice, grid, uniform, loguniform, quniform"),
        ({}, "give exactly one of"),
    ],
)
def test_an_axis_that_is_none_is_refused_by_its_name(axis: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        searching(model__dropout=axis)
    assert str(caught.value).startswith("tune.space.model.dropout: ")
    assert told in str(caught.value)


class TestPoints:
    def test_a_point_is_put_in_and_the_space_is_left_out(self) -> None:
        recipe = searching(
            data__height_AND_data__width={"choice": [[32, 48], [64, 96]]}, model__filters={"choice": [4]}
        )
        made = space.recipe_at(recipe, {"data.height,data.width": [64, 96], "model.filters": 4})
        assert (made.data.height, made.data.width, made.model.filters) == (64, 96, 4)
        assert made.tune.space == {}

    def test_a_section_is_put_in_whole(self) -> None:
        recipe = searching(loss__terms={"choice": [{"dice": 1.0}, {"bce": 1.0}]})
        assert space.recipe_at(recipe, {"loss.terms": {"bce": 1.0}}).loss.terms.dice == 0.0

    def test_an_axis_applies_where_its_condition_holds_on_what_was_chosen_before(self) -> None:
        recipe = searching(
            loss__terms={"choice": [{"dice": 1.0}, {"dice": 1.0, "bce": 1.0}]},
            loss__terms__dice={"choice": [0.5, 2.0], "when": {"loss.terms.bce": [1.0]}},
        )
        assert list(space.grid(recipe)) == [
            {"loss.terms": {"dice": 1.0}},
            {"loss.terms": {"dice": 1.0, "bce": 1.0}, "loss.terms.dice": 0.5},
            {"loss.terms": {"dice": 1.0, "bce": 1.0}, "loss.terms.dice": 2.0},
        ]

    def test_a_condition_sees_the_defaults_of_a_section_that_was_put_in(self) -> None:
        recipe = searching(
            loss__terms={"choice": [{"dice": 1.0}]},
            loss__dice_smooth={"choice": [0.5], "when": {"loss.terms.bce": 0.0}},
        )
        assert list(space.grid(recipe)) == [{"loss.terms": {"dice": 1.0}, "loss.dice_smooth": 0.5}]

    def test_the_grid_has_each_combination_once(self) -> None:
        recipe = searching(model__filters={"choice": [4, 8]}, model__depth={"grid": [1, 2, 3]})
        points = list(space.grid(recipe))
        assert len(points) == len({space.key(point) for point in points}) == 6
        assert points[1] == {"model.filters": 4, "model.depth": 2}

    def test_a_starting_point_has_the_values_of_its_recipe(self) -> None:
        recipe = searching(
            loss__terms={"choice": [{"dice": 1.0}, {"dice": 1.0, "bce": 1.0}]},
            optimizer__learning_rate={"loguniform": [1e-4, 1e-2]},
        )
        point = space.point_of(recipe, Recipe(), "default.yaml")
        assert point == {"loss.terms": {"dice": 1.0, "bce": 1.0}, "optimizer.learning_rate": 1e-3}

    @pytest.mark.parametrize("axis", [{"choice": [4, 8]}, {"quniform": [4, 8, 4]}])
    def test_a_starting_point_outside_of_the_space_is_refused(self, axis: dict[str, Any]) -> None:
        with pytest.raises(UserError) as caught:
            space.point_of(searching(model__filters=axis), Recipe(), "x.yaml")
        told = "tune.start_from: x.yaml has filters 16, which is not in tune.space.model.filters"
        assert str(caught.value) == told


class TestOptuna:
    def test_whole_numbers_stay_whole_and_end_on_the_last_step(self) -> None:
        found = space.distribution(Axis(quniform=(4, 15, 4)))
        assert found == optuna.distributions.IntDistribution(4, 12, step=4)

    @given(
        st.sampled_from([[1, 2], [[1, 2], [3, 4]], [{"dice": 1.0}, {"bce": 0.5}], ["a", None], [True, 0.5]]), st.data()
    )
    def test_a_choice_survives_the_way_through_optuna(self, values: list[Any], data: st.DataObject) -> None:
        axis, value = Axis(choice=tuple(values)), data.draw(st.sampled_from(values))
        study = optuna.create_study()
        study.enqueue_trial({"x": space.encoded(axis, value)})
        assert space.suggested(study.ask(), "x", axis) == value

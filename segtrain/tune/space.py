"""The search space: which points there are, what recipe each makes, and how Optuna sees its axes. Pure functions."""

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import optuna

from segtrain.config import Axis, Recipe
from segtrain.config.kinds import put
from segtrain.errors import UserError
from segtrain.runs.trials import short_name, short_value

Point = dict[str, Any]
"""Axis name -> value, of the axes that apply."""
SEARCHED = ("data", "augment", "model", "loss", "optimizer", "schedule", "train", "evaluation")
"""Sections that decide what a run computes. The others say where it runs, which must be equal for all trials."""
NOT_SEARCHED = ("data.root", "data.fold", "data.test_fold", "evaluation.threshold", "evaluation.every_epochs")
"""Fields that would make the trials' scores incomparable."""


def check_space(recipe: Recipe) -> None:
    """Raise UserError for an empty space, a field that there is not, and a value that no recipe can have.

    Each value is tried alone, with the conditions of its axis put in; how values of several axes go together shows
    only when a point is chosen.
    """
    space = recipe.tune.space
    if not space:
        raise UserError("tune.space is empty; name at least one field, such as model.filters: {choice: [16, 32]}")
    owners: dict[str, str] = {}
    for name, axis in space.items():
        for field in fields(name):
            if field.partition(".")[0] not in SEARCHED or field in NOT_SEARCHED:
                raise UserError(
                    f"tune.space.{name}: {field} cannot be searched, as trials must be comparable; "
                    f"search fields of {', '.join(SEARCHED)}"
                )
            if field in owners:
                raise UserError(f"tune.space: {field} is in '{owners[field]}' and in '{name}'; search it once")
            owners[field] = name
        for value in _samples(axis):
            _check_value(recipe, name, axis, value)
        if recipe.tune.search == "grid" and axis.values is None:
            raise UserError(f"tune.space.{name}: a range has no grid; give it a choice, or set tune.search to random")


def _check_value(recipe: Recipe, name: str, axis: Axis, value: Any) -> None:
    if "," in name and not (isinstance(value, list | tuple) and len(value) == len(fields(name))):
        raise UserError(f"tune.space.{name}: {value!r} must be a list of {len(fields(name))} values, one a field")
    try:
        _with_value(recipe, name, axis, value)
    except UserError as error:
        raise UserError(f"tune.space.{name}: {short_value(value)} makes no recipe: {error}") from None


def _with_value(recipe: Recipe, name: str, axis: Axis, value: Any) -> Recipe:
    """The recipe with one axis put in, where its conditions hold."""
    holding = {field: wanted[0] if isinstance(wanted, list | tuple) else wanted for field, wanted in axis.when.items()}
    return recipe.updated(holding | _values({name: value}))


def dropped(recipe: Recipe) -> list[str]:
    """A sentence for each setting of the recipe that some value of an axis leaves out."""
    found = dict.fromkeys(
        sentence
        for name, axis in recipe.tune.space.items()
        for value in axis.values or ()
        for sentence in put(recipe.as_set(), _values({name: value}))
    )
    return [f"tune.space: {sentence}" for sentence in found]


def _samples(axis: Axis) -> tuple[Any, ...]:
    """All values of a choice, both ends of a range."""
    if axis.values is not None:
        return axis.values
    ends = (axis.uniform or axis.loguniform or axis.quniform or ())[:2]
    is_whole = isinstance(distribution(axis), optuna.distributions.IntDistribution)
    return tuple(int(end) if is_whole else end for end in ends)


def fields(name: str) -> list[str]:
    """The recipe's fields that an axis sets."""
    return [field.strip() for field in name.split(",")]


def recipe_at(recipe: Recipe, point: Mapping[str, Any]) -> Recipe:
    """The recipe with a point put in, as one change, and without its `tune` section.

    Raises UserError where the values of the point do not go together.
    """
    return recipe.updated(_values(point) | {"tune": {}})


def taken_up(recipe: Recipe, earlier: Recipe) -> Recipe:
    """The recipe of a trial that an earlier attempt began: it computes what it did, whatever its point means today."""
    return recipe.computing(earlier).updated({"tune": {}})


def choose(recipe: Recipe, pick: Callable[[str, Axis], Any]) -> Point:
    """A point: `pick(name, axis)` gives the value of each axis whose conditions hold, in the order of the space."""
    tree: dict[str, Any] = recipe.to_dict()
    point: Point = {}
    for name, axis in recipe.tune.space.items():
        if _applies(axis, tree):
            point[name] = pick(name, axis)
            tree = _resolved(recipe, _values(point))
    return point


def _resolved(recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's tree with values put in, and the defaults of sections that are put in whole."""
    try:
        return recipe.updated(values).to_dict()
    except UserError:  # values of axes to come may mend it; `recipe_at` says if they do not
        tree = recipe.to_dict()
        put(tree, values)
        return tree


def grid(recipe: Recipe) -> list[Point]:
    """Each combination of the choices once, the last axis fastest; an axis that does not apply makes no difference."""
    axes = {name: axis.values or () for name, axis in recipe.tune.space.items()}
    combinations = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    points = (choose(recipe, lambda name, axis, values=values: values[name]) for values in combinations)  # type: ignore[misc]
    return list({key(point): point for point in points}.values())


def point_of(recipe: Recipe, start: Recipe, source: str) -> Point:
    """The point of the space that has the values of `start`.

    Raises UserError, naming `source`, where `start` has a value that its axis does not.
    """

    def pick(name: str, axis: Axis) -> Any:
        wanted = [_at(start.to_dict(), field) for field in fields(name)]
        for value in axis.values or ():
            tree = _with_value(recipe, name, axis, value).to_dict()
            if key([_at(tree, field) for field in fields(name)]) == key(wanted):
                return value
        is_number = isinstance(wanted[0], int | float)
        if axis.values is None and is_number and distribution(axis)._contains(wanted[0]):
            return wanted[0]
        told = short_value(wanted if len(wanted) > 1 else wanted[0])
        raise UserError(f"tune.start_from: {source} has {short_name(name)} {told}, which is not in tune.space.{name}")

    return choose(recipe, pick)


def key(point: Any) -> str:
    """Equal for equal points, and for equal values of an axis."""
    return json.dumps(point, sort_keys=True)


def distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    """How Optuna sees an axis. Choices are their JSON texts, because Optuna takes scalars only."""
    if axis.values is not None:
        return optuna.distributions.CategoricalDistribution([json.dumps(value) for value in axis.values])
    if axis.quniform is not None:
        low, high, step = axis.quniform
        if all(float(number).is_integer() for number in axis.quniform):
            last = low + (high - low) // step * step
            return optuna.distributions.IntDistribution(int(low), int(last), step=int(step))
        return optuna.distributions.FloatDistribution(low, high, step=step)
    low, high = axis.uniform or axis.loguniform or (0.0, 0.0)
    return optuna.distributions.FloatDistribution(low, high, log=axis.loguniform is not None)


def encoded(axis: Axis, value: Any) -> Any:
    """A value as Optuna's parameter."""
    return json.dumps(value) if axis.values is not None else value


def suggested(trial: optuna.Trial, name: str, axis: Axis) -> Any:
    """Ask Optuna for the value of an axis."""
    found = distribution(axis)
    if isinstance(found, optuna.distributions.CategoricalDistribution):
        return json.loads(str(trial.suggest_categorical(name, found.choices)))
    if isinstance(found, optuna.distributions.IntDistribution):
        return trial.suggest_int(name, found.low, found.high, step=found.step)
    assert isinstance(found, optuna.distributions.FloatDistribution)
    return trial.suggest_float(name, found.low, found.high, step=found.step, log=found.log)


def _applies(axis: Axis, tree: Mapping[str, Any]) -> bool:
    return all(
        _at(tree, field) in (wanted if isinstance(wanted, list | tuple) else [wanted])
        for field, wanted in axis.when.items()
    )


def _at(tree: Mapping[str, Any], field: str) -> Any:
    """The value of a dotted field; None where there is none, as `loss.terms.dice` of terms that leave it out."""
    node: Any = tree
    for part in field.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _values(point: Mapping[str, Any]) -> dict[str, Any]:
    """Field -> value, of all axes of a point."""
    return {
        field: one
        for name, value in point.items()
        for field, one in zip(fields(name), value if "," in name else [value], strict=True)
    }

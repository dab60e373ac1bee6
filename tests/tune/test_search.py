"""Which point comes next, without Ray: the searcher is called as Ray Tune calls it."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from segtrain.config import AdamWConfig, Recipe, TuneConfig, override, recorded
from segtrain.errors import UserError
from segtrain.runs.trials import ScoredEpoch, Trial, read_trials, write_sweep, write_trial
from segtrain.runs.trials import Sweep as SweepFacts
from segtrain.storage.files import Storage
from segtrain.tune import space
from segtrain.tune.search import INFEASIBLE_IN_A_ROW, PointSearch, Verdict
from segtrain.tune.sweep_record import SweepRecord

RATES = {"optimizer.learning_rate": {"loguniform": [1e-4, 1e-1]}}
SMALL = {"model.filters": {"choice": [4, 8]}, "model.depth": {"choice": [1, 2]}}


def asked(axes: dict[str, Any], **tune: Any) -> Recipe:
    return Recipe.from_dict({"tune": {"space": axes, **tune}})


def searcher(recipe: Recipe, folder: Path, *, at_once: int = 1, starts: tuple[space.Point, ...] = ()) -> PointSearch:
    write_sweep(str(folder), SweepFacts("running"), Storage())
    record = SweepRecord(str(folder), Storage())

    def judge(number: int, point: space.Point) -> Verdict:
        if point.get("model.filters") == 8:
            return Verdict(None, "too large")
        return Verdict(space.recipe_at(recipe, point), parameters=5)

    search = PointSearch(recipe, record, judge, max_concurrent=at_once, starts=starts)
    search.record = record  # type: ignore[attr-defined]
    return search


def end(search: PointSearch, trial_id: str, number: int, dice: float | None, status: str = "finished") -> None:
    record: SweepRecord = search.record  # type: ignore[attr-defined]
    trial = record[number]
    if dice is not None:
        trial = record.scored(number, ScoredEpoch(1, dice, 1.0, 1.0))
    record.put(trial.ended(status))  # type: ignore[arg-type]
    search.on_trial_complete(trial_id)


def run_all(search: PointSearch, dice: Any = lambda config: 0.5, most: int = 50) -> list[dict[str, Any]]:
    """Ask, end with a dice, ask again, until there is no more."""
    configs: list[dict[str, Any]] = []
    while (config := search.suggest(f"t{len(configs)}")) != "FINISHED" and len(configs) < most:
        assert isinstance(config, dict)
        configs.append(config)
        end(search, f"t{len(configs) - 1}", config["number"], dice(config))
    return configs


def test_no_more_are_given_than_may_run_at_once(tmp_path: Path) -> None:
    search = searcher(asked(RATES), tmp_path, at_once=2)
    assert isinstance(search.suggest("a"), dict)
    assert isinstance(search.suggest("b"), dict)
    assert search.suggest("c") is None
    end(search, "a", 0, 0.5)
    assert isinstance(search.suggest("c"), dict)


def test_a_trial_that_was_recorded_keeps_its_recipe_whatever_its_point_means_today(tmp_path: Path) -> None:
    axes = {"optimizer.kind": {"choice": ["adamw"]}}
    recipe = override(Recipe(), ["optimizer.learning_rate=2e-3", "data.root=moved"]).updated({"tune": {"space": axes}})
    search = searcher(recipe, tmp_path)
    config = search.suggest("a")
    assert isinstance(config, dict)
    assert recorded(config["recipe"]).optimizer == AdamWConfig(learning_rate=2e-3)
    # As an older segtrain has recorded the same point: with the rate of the new kind.
    older = override(Recipe(), ["optimizer.kind=adamw", "data.root=there"])
    (tmp_path / "trials" / "0000" / "recipe.yaml").write_text(older.to_yaml())
    record = SweepRecord(str(tmp_path), Storage())
    earlier = record.recipe_of(0)
    assert earlier is not None
    made = space.taken_up(recipe, earlier)
    assert (made.optimizer, made.data.root, made.tune) == (AdamWConfig(), "moved", TuneConfig())
    assert record.recipe_of(1) is None
    (tmp_path / "trials" / "0000" / "recipe.yaml").unlink()
    assert record.recipe_of(0) is None


def test_the_recipe_of_a_trial_is_kept_before_the_trial_is(tmp_path: Path) -> None:
    config = searcher(asked(RATES), tmp_path).suggest("a")
    assert isinstance(config, dict)
    (trial,) = read_trials(str(tmp_path), Storage())
    assert SweepRecord(str(tmp_path), Storage()).recipe_of(trial.number) == recorded(config["recipe"])


def test_a_recorded_point_that_is_none_of_the_space_is_named(tmp_path: Path) -> None:
    for number, point in enumerate(
        [{"model.colour": 1}, {"model.filters": 5}, {"model.filters": [[]], "model.depth": 1}]
    ):
        folder = tmp_path / str(number)
        write_sweep(str(folder), SweepFacts("running"), Storage())
        write_trial(str(folder), Trial(0, point, "finished"), Storage())
        with pytest.raises(UserError, match=r"0000/trial\.json holds a point that is none of tune\.space \(model\."):
            searcher(asked(SMALL), folder)


def test_a_trial_that_cannot_be_recorded_is_not_run(tmp_path: Path) -> None:
    search = searcher(asked(RATES), tmp_path)
    SweepRecord(str(tmp_path), Storage()).claim(resume=False)  # another driver
    assert search.suggest("a") == "FINISHED"
    assert read_trials(str(tmp_path), Storage()) == []


def test_infeasible_points_are_recorded_with_the_reason_and_do_not_count(tmp_path: Path) -> None:
    search = searcher(asked(SMALL, search="grid", max_trials=2), tmp_path)
    assert len(run_all(search)) == 2
    found = read_trials(str(tmp_path), Storage())
    assert [(trial.status, trial.reason) for trial in found[2:]] == []
    search = searcher(asked(SMALL, search="random", max_trials=20), tmp_path / "other")
    assert len(run_all(search)) == 2  # the space has no more
    found = read_trials(str(tmp_path / "other"), Storage())
    assert sorted(trial.status for trial in found) == ["finished"] * 2 + ["infeasible"] * 2
    assert {trial.reason for trial in found if trial.status == "infeasible"} == {"too large"}


def test_a_space_of_which_nothing_fits_ends_in_one_sentence(tmp_path: Path) -> None:
    recipe = asked({"model.filters": {"choice": [8]}, **RATES})
    with pytest.raises(
        UserError, match=rf"tune\.space: {INFEASIBLE_IN_A_ROW} points in a row are infeasible, .*too large"
    ):
        searcher(recipe, tmp_path).suggest("a")


def test_starting_points_come_first(tmp_path: Path) -> None:
    start = {"optimizer.learning_rate": 0.05}
    search = searcher(asked(RATES, max_trials=2), tmp_path, starts=(start,))
    run_all(search)
    assert read_trials(str(tmp_path), Storage())[0].point == start


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_no_point_is_tried_twice(tmp_path: Path, kind: str) -> None:
    axes = {"model.depth": {"choice": [1, 2, 3]}, "model.convolutions": {"choice": [1, 2]}}
    configs = run_all(searcher(asked(axes, search=kind, startup_trials=2), tmp_path))
    keys = [space.key(trial.point) for trial in read_trials(str(tmp_path), Storage())]
    assert len(configs) == len(keys) == len(set(keys)) == 6


def test_random_points_depend_on_seed_and_number_alone(tmp_path: Path) -> None:
    recipe = asked(RATES, search="random", max_trials=4)
    run_all(searcher(recipe, tmp_path / "one"))
    run_all(searcher(recipe, tmp_path / "two", at_once=1), most=2)
    run_all(searcher(recipe, tmp_path / "two", at_once=3))
    one, two = ([trial.point for trial in read_trials(str(tmp_path / name), Storage())] for name in ("one", "two"))
    assert one == two
    run_all(searcher(asked(RATES, search="random", max_trials=4, seed=1), tmp_path / "three"))
    assert one != [trial.point for trial in read_trials(str(tmp_path / "three"), Storage())]


def test_what_an_earlier_attempt_began_comes_first_and_what_it_ended_is_not_given_again(tmp_path: Path) -> None:
    recipe = asked(RATES, max_trials=3)
    first = searcher(recipe, tmp_path, at_once=2)
    first.suggest("a")
    first.suggest("b")
    end(first, "a", 0, 0.7)
    point = read_trials(str(tmp_path), Storage())[1].point
    again = searcher(recipe, tmp_path)
    config = again.suggest("x")
    assert isinstance(config, dict)
    assert config["number"] == 1
    assert read_trials(str(tmp_path), Storage())[1].point == point
    end(again, "x", 1, 0.5)
    assert isinstance(third := again.suggest("y"), dict)
    assert third["number"] == 2
    end(again, "y", 2, None, "failed")
    assert again.suggest("z") == "FINISHED"


def test_tpe_comes_closer_to_the_best_rate_than_chance(tmp_path: Path) -> None:
    def dice(config: dict[str, Any]) -> float:
        rate = Recipe.from_dict(yaml.safe_load(config["recipe"])).optimizer.learning_rate
        return 1.0 - abs(math.log10(rate) + 2.0) / 3  # best at 1e-2

    distances = {}
    for kind in ("tpe", "random"):
        run_all(searcher(asked(RATES, search=kind, max_trials=40), tmp_path / kind), dice)
        late = read_trials(str(tmp_path / kind), Storage())[20:]
        distances[kind] = sum(1 - (trial.dice or 0.0) for trial in late) / len(late)
    assert distances["tpe"] < 0.6 * distances["random"]


def test_the_first_trial_of_a_new_record_is_number_0(tmp_path: Path) -> None:
    assert SweepRecord(str(tmp_path), Storage()).next_number == 0
    search = searcher(asked(RATES), tmp_path)
    search.suggest("a")
    assert read_trials(str(tmp_path), Storage()) == [
        Trial(0, search.record[0].point, "running", parameters=5)  # type: ignore[attr-defined]
    ]

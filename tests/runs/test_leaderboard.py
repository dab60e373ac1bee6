"""A sweep's trials in order, the Pareto front, `leaderboard.csv`, `best.yaml`, and the importance of axes."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.config import Axis, Recipe, TuneConfig, identity_differences, load_recipe, override
from segtrain.runs.leaderboard import (
    Importance,
    best_recipe,
    best_yaml,
    importance,
    pareto,
    ranked,
    tells_apart,
    to_csv,
)
from segtrain.runs.trials import ScoredEpoch, Trial

FILTERS = Axis(choice=(8, 16, 32))


def scored(number: int, dice: float, gpu_s: float = 10.0, **point: object) -> Trial:
    """A finished trial of one epoch."""
    named = {name.replace("_", ".", 1): value for name, value in point.items()}
    return Trial(number, named, "finished", history=(ScoredEpoch(1, dice, gpu_s, 40.0),))


def shares_of(trials: list[Trial], space: dict[str, Axis]) -> dict[str, float]:
    return {axis: found.share for axis, found in importance(trials, space).items()}


def numbers(trials: list[Trial]) -> list[int]:
    return [trial.number for trial in trials]


def rows(trials: list[Trial], axes: list[str]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(trials, axes))))


def test_trials_are_ranked_by_dice_then_by_what_they_cost_then_by_number() -> None:
    trials = [scored(0, 0.8), scored(1, 0.9, 20.0), scored(2, 0.9, 10.0), scored(3, 0.8), Trial(4, {}, "infeasible")]
    assert numbers(ranked(trials)) == [2, 1, 0, 3]


def test_a_trial_that_failed_after_an_epoch_ranks_behind_those_that_did_not() -> None:
    assert numbers(ranked([scored(0, 0.7), scored(1, 0.8).ended("failed", "lost")])) == [0, 1]


def test_the_front_holds_what_nothing_beats_in_dice_and_cost() -> None:
    trials = [
        scored(0, 0.90, 50.0),
        scored(1, 0.80, 10.0),
        scored(2, 0.85, 60.0),  # 0 is better and cheaper
        scored(3, 0.80, 20.0),  # 1 is as good and cheaper
        scored(4, 0.70, 10.0),  # 1 is better at the same cost
        scored(5, 0.95, 80.0),
        Trial(6, {}, "failed"),
    ]
    assert numbers(pareto(trials)) == [1, 0, 5]


def test_trials_equal_in_both_are_all_in_the_front() -> None:
    assert numbers(pareto([scored(0, 0.9), scored(1, 0.9), scored(2, 0.8, 20.0)])) == [0, 1]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=12))
def test_the_front_is_what_the_definition_says(figures: list[tuple[int, int]]) -> None:
    trials = [scored(number, dice / 5, float(gpu_s)) for number, (dice, gpu_s) in enumerate(figures)]
    unbeaten = {
        number
        for number, (dice, gpu_s) in enumerate(figures)
        if not any(d >= dice and s <= gpu_s and (d, s) != (dice, gpu_s) for d, s in figures)
    }
    front = pareto(trials)
    assert set(numbers(front)) == unbeaten
    assert [trial.gpu_s for trial in front] == sorted(trial.gpu_s for trial in front)


def test_the_csv_has_every_trial_with_its_point_and_its_reason() -> None:
    sizes, terms = "data.height,data.width", "loss.terms"
    trials = [
        Trial(
            0, {"model.down": "strided", sizes: [64, 96], terms: {"dice": 1.0}}, "infeasible", "needs 21, has 16 GiB"
        ),
        Trial(
            1,
            {"model.down": "max_pool", sizes: [96, 144], "loss.dice_smooth": 0.5},
            "stopped",
            'outside the "best" third',
            (ScoredEpoch(1, 0.5, 3.04, 20.0), ScoredEpoch(2, 0.75, 6.06, 21.25), ScoredEpoch(3, 0.7, 9.0, 22.0)),
            parameters=1234,
            memory_bytes=5678,
            attempts=1,
        ),
    ]
    first, last = rows(trials, ["model.down", sizes, terms, "loss.dice_smooth"])
    assert first == {
        "rank": "1",
        "trial": "1",
        "status": "stopped",
        "dice": "0.750000",
        "best_epoch": "2",
        "epochs": "3",
        "gpu_s": "9.0",
        "parameters": "1234",
        "images_per_s": "22.0",
        "memory_bytes": "5678",
        "pareto": "yes",
        "model.down": "max_pool",
        sizes: "[96, 144]",
        terms: "",
        "loss.dice_smooth": "0.5",
        "reason": 'outside the "best" third',
    }
    assert (last["trial"], last["rank"], last["dice"], last["gpu_s"], last["pareto"]) == ("0", "", "", "", "")
    assert last["reason"] == "needs 21, has 16 GiB"
    assert json.loads(last[terms]) == {"dice": 1.0}


def test_text_that_a_spreadsheet_would_compute_is_quoted_and_numbers_are_not() -> None:
    trial = Trial(0, {"run.notes": "=1+1", "train.seed": -3}, "failed", reason="@SUM(A1)")
    (row,) = rows([trial], ["run.notes", "train.seed"])
    assert (row["run.notes"], row["train.seed"], row["reason"]) == ("'=1+1", "-3", "'@SUM(A1)")


def test_the_csv_of_a_sweep_without_trials_is_its_header() -> None:
    assert to_csv([], ["model.filters"]).splitlines() == [
        "rank,trial,status,dice,best_epoch,epochs,gpu_s,parameters,images_per_s,memory_bytes,pareto,model.filters,reason"
    ]


COSINE = override(Recipe(), ["schedule.kind=cosine", "schedule.warmup_epochs=1", "train.epochs=9", "model.filters=8"])
STOPPED = Trial(
    7,
    {},
    "stopped",
    history=(ScoredEpoch(1, 0.7, 5.0, 40.0), ScoredEpoch(2, 0.9, 10.0, 40.0), ScoredEpoch(3, 0.8, 15.0, 40.0)),
)


def test_the_best_recipe_stops_where_the_trial_did_on_the_cosine_that_it_was_on() -> None:
    best = best_recipe(COSINE, STOPPED, name="cars-best", storage="s3://b/runs")
    assert identity_differences(COSINE, best) == ["schedule.horizon_epochs: None -> 9", "train.epochs: 9 -> 3"]
    assert best.run.folder == "s3://b/runs/cars-best"


@pytest.mark.parametrize(
    "schedule", [["schedule.horizon_epochs=30"], ["schedule.kind=constant"], ["schedule.kind=plateau"]], ids=str
)
def test_a_schedule_that_says_itself_how_it_goes_stays_as_it_is(schedule: list[str]) -> None:
    own = override(COSINE, schedule)
    assert best_recipe(own, STOPPED, name="best", storage="runs").schedule == own.schedule


def test_the_best_recipe_is_no_sweep() -> None:
    own = override(COSINE, ["tune.space={model.filters: {choice: [8, 16]}}", "tune.max_trials=3"])
    assert best_recipe(own, STOPPED, name="best", storage="runs").tune == TuneConfig()


def test_best_yaml_says_what_it_is_and_reads_as_the_best_recipe(tmp_path: Path) -> None:
    text = best_yaml(COSINE, STOPPED, "demo/my cars", name="cars-best", storage="demo")
    (tmp_path / "best.yaml").write_text(text)
    assert load_recipe(tmp_path / "best.yaml") == best_recipe(COSINE, STOPPED, name="cars-best", storage="demo")
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Trial 7 of the sweep demo/my cars, its best: hard dice 0.9000 at original resolution on fold 0,",
        "# in epoch 2 of the 3 that it trained for (train.epochs was 9). This trains it again:",
        "#",
        "#   python jobs/train.py 'demo/my cars/best.yaml'",
    ]


def test_best_yaml_in_a_bucket_is_run_from_a_copy() -> None:
    text = best_yaml(COSINE, STOPPED, "s3://b/runs/sweep", name="best", storage="s3://b/runs")
    assert "#   python jobs/train.py best.yaml\n" in text


def test_importance_shares_out_what_axes_explain_beyond_chance() -> None:
    # Ranks 8 to 1: a sum of squares of 42, 6 free trials. Filters split them 8 7 6 5 | 4 3 2 1: 32 between, less
    # 10/6 by chance. Depths split them 8 7 4 3 | 6 5 2 1: 8 less 34/6. Seeds 8 6 4 2 | 7 5 3 1: 2, and 40/6 is chance.
    trials = [
        scored(n, 0.9 - 0.05 * n, model_filters=8 << n // 4, model_depth=2 + n // 2 % 2, train_seed=n % 2)
        for n in range(8)
    ]
    space = {"train.seed": Axis(choice=(0, 1)), "model.depth": Axis(quniform=(2, 5, 1)), "model.filters": FILTERS}
    filters, depth = 32 - 10 / 6, 8 - 34 / 6
    assert shares_of(trials, space) == pytest.approx(
        {"model.filters": filters / (filters + depth), "model.depth": depth / (filters + depth), "train.seed": 0.0}
    )
    assert next(iter(shares_of(trials, space))) == "model.filters"


def test_a_range_is_judged_by_thirds() -> None:
    rates = [1e-4, 2e-4, 3e-4, 1e-3, 2e-3, 3e-3, 1e-2, 2e-2, 3e-2]
    dice = [0.70, 0.71, 0.72, 0.90, 0.91, 0.92, 0.80, 0.81, 0.82]  # best in the middle
    trials = [
        scored(number, dice[number], optimizer_learning_rate=rates[number], model_filters=8 + 8 * (number % 2))
        for number in range(9)
    ]
    space = {"model.filters": FILTERS, "optimizer.learning_rate": Axis(loguniform=(1e-4, 1e-1))}
    assert shares_of(trials, space) == {"optimizer.learning_rate": 1.0, "model.filters": 0.0}


def test_an_axis_that_applies_only_sometimes_is_judged_where_it_applies() -> None:
    # With bce 1 to 4, with dice 5 to 8: the loss has 32 of 42, less chance 1.67. Among those with dice the weight has
    # 4 of 5, less chance (5 - 4) / 2.
    trials = [scored(number, 0.5 + 0.01 * number, loss_kind="bce") for number in range(4)]
    trials += [
        scored(number, 0.5 + 0.01 * number, loss_kind="dice", loss_weight=1 + number // 6) for number in range(4, 8)
    ]
    space = {"loss.kind": Axis(choice=("bce", "dice")), "loss.weight": Axis(choice=(1, 2))}
    loss, weight = 32 - 10 / 6, 4 - 1 / 2
    assert shares_of(trials, space) == pytest.approx(
        {"loss.kind": loss / (loss + weight), "loss.weight": weight / (loss + weight)}
    )


def test_trials_that_say_nothing_of_their_point_are_left_out_of_shares_of() -> None:
    good = [scored(number, 0.9 - 0.1 * number, model_filters=8 * (1 + number // 2)) for number in range(4)]
    space = {"model.filters": FILTERS}
    assert shares_of(good, space) == {"model.filters": 1.0}
    for ended in (
        good[0].ended("failed", "lost"),
        good[0].ended("running"),
        good[0].ended("stopped", "the budget is spent", resumable=True),
    ):
        assert shares_of([ended, *good[1:]], space) == {}, "three are too few"


def test_nothing_is_important_where_nothing_differs() -> None:
    space = {"model.filters": FILTERS, "optimizer.learning_rate": Axis(loguniform=(1e-4, 1e-2))}
    same_dice = [scored(n, 0.9, model_filters=8 << n % 3, optimizer_learning_rate=1e-3 * (n + 1)) for n in range(6)]
    same_point = [scored(n, 0.9 - 0.1 * n, model_filters=8, optimizer_learning_rate=1e-3) for n in range(6)]
    assert shares_of(same_dice, space) == shares_of(same_point, space) == shares_of([], space) == {}


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([8, 16, 32]), st.floats(1e-4, 1e-2)), max_size=30))
def test_importance_is_shares_or_nothing(figures: list[tuple[float, int, float]]) -> None:
    trials = [
        scored(number, dice, model_filters=filters, optimizer_learning_rate=rate)
        for number, (dice, filters, rate) in enumerate(figures)
    ]
    shares = shares_of(trials, {"model.filters": FILTERS, "optimizer.learning_rate": Axis(loguniform=(1e-4, 1e-2))})
    if shares:
        assert sum(shares.values()) == pytest.approx(1.0)
        assert min(shares.values()) >= 0.0
        assert list(shares.values()) == sorted(shares.values(), reverse=True)


def sweep(count: int) -> list[Trial]:
    """Filters decide, the seed does nothing, and noise is as large as the step between two widths."""
    random = np.random.default_rng(count)
    return [
        scored(
            number,
            0.8 + 0.05 * (number % 3) + float(random.normal(0, 0.05)),
            model_filters=8 << number % 3,
            train_seed=int(random.integers(3)),
        )
        for number in range(count)
    ]


SWEEP_SPACE = {"model.filters": FILTERS, "train.seed": Axis(choice=(0, 1, 2))}


def test_the_more_trials_the_surer_is_the_importance_and_few_do_not_tell_axes_apart() -> None:
    few, many = importance(sweep(6), SWEEP_SPACE), importance(sweep(200), SWEEP_SPACE)
    assert not tells_apart(few)
    assert tells_apart(many)
    widths = [found["model.filters"].high - found["model.filters"].low for found in (few, many)]
    assert widths[0] > 0.5 > 0.2 > widths[1]
    assert many["model.filters"].low > 0.8


def test_an_importance_lies_within_its_range_and_is_the_same_each_time() -> None:
    found = importance(sweep(14), SWEEP_SPACE)
    assert all(0.0 <= one.low <= one.share <= one.high <= 1.0 for one in found.values())
    assert found == importance(sweep(14), SWEEP_SPACE)


def test_the_label_of_an_importance_has_its_range_in_brackets() -> None:
    assert Importance(0.554, 0.2, 0.8).label == "55 % (20 to 80 %)"


def test_one_axis_alone_is_sure_where_half_of_the_trials_show_it() -> None:
    assert tells_apart({"train.seed": Importance(1.0, 1.0, 1.0)})
    assert not tells_apart({"train.seed": Importance(1.0, 0.0, 1.0)})


def test_no_cell_of_the_table_is_a_formula_and_numbers_stay_numbers() -> None:
    trial = Trial(0, {"data.root": "=1+1", "optimizer.learning_rate": -0.5}, "failed", reason="=cmd()")
    (row,) = csv.DictReader(io.StringIO(to_csv([trial], ["data.root", "optimizer.learning_rate"])))
    assert (row["data.root"], row["optimizer.learning_rate"], row["reason"]) == ("'=1+1", "-0.5", "'=cmd()")

"""What the user sees of a sweep."""

import io
import itertools
import re
from dataclasses import replace

import pytest

from segtrain.config import Axis
from segtrain.runs.status import Progress
from segtrain.runs.trials import ScoredEpoch, Trial
from segtrain.tune.display import COLUMNS, SweepDisplay, final_table, importance_lines

POINT = {"model.filters": 16, "data.height,data.width": [96, 144], "loss.terms": {"dice": 1.0, "bce": 1.0}}
IN_WORDS = "filters=16 height,width=96,144 terms=dice:1+bce:1"


def trial(number: int, dice: float, epochs: int = 1) -> Trial:
    """A running trial whose last epoch was its best."""
    history = [ScoredEpoch(epoch, dice - 0.01 * (epochs - epoch), 30.0 * epoch, 40.0) for epoch in range(1, epochs + 1)]
    return Trial(number, dict(POINT), "running", history=tuple(history), parameters=1_943_201, attempts=1)


def show(display: SweepDisplay, *trials: Trial, running: dict[int, Progress | None] | None = None) -> None:
    display.update(trials, planned=12, running=running or {}, seconds=95.0, gpu_s=1800.0, left_s=605.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_each_trial_has_a_line_when_it_starts_and_when_it_ends() -> None:
    stream = io.StringIO()
    display = SweepDisplay(stream=stream, every_s=60.0)
    under_way = Trial(0, POINT, "running")
    show(display, under_way)  # and the first line of state
    show(display, replace(under_way, attempts=1))
    show(display, trial(0, 0.9, epochs=3))
    show(display, trial(0, 0.9, epochs=3).ended("stopped", "not in the best third at epoch 3"))
    show(display, trial(0, 0.9, epochs=3).ended("stopped", "not in the best third at epoch 3"), trial(1, 0.8))
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("trial")]
    assert lines == [
        f"trial 0 starts  {IN_WORDS}",
        f"trial 0 stopped  dice 0.9000 in 3 epochs  not in the best third at epoch 3  {IN_WORDS}",
        f"trial 1 starts  {IN_WORDS}",
    ]


def test_a_trial_that_is_tried_again_says_so() -> None:
    stream = io.StringIO()
    display = SweepDisplay(stream=stream, every_s=60.0)
    show(display, trial(0, 0.9))
    show(display, trial(0, 0.9).started())
    show(display, trial(0, 0.9).started().ended("failed", "its process was lost"))
    assert f"trial 0 starts again (attempt 2)  {IN_WORDS}\n" in stream.getvalue()
    assert f"trial 0 failed  dice 0.9000 in 1 epoch  2 attempts  its process was lost  {IN_WORDS}" in stream.getvalue()


def test_an_infeasible_trial_has_its_reason_and_no_score() -> None:
    stream = io.StringIO()
    show(SweepDisplay(stream=stream, every_s=60.0), Trial(4, POINT, "infeasible", "needs 21.3 GiB; a device has 16.0"))
    assert stream.getvalue().startswith(f"trial 4 infeasible  needs 21.3 GiB; a device has 16.0  {IN_WORDS}\n")


def test_the_line_of_state_counts_trials_and_names_best_time_and_cost() -> None:
    stream = io.StringIO()
    display = SweepDisplay(stream=stream, every_s=0.0)
    trials = [
        trial(0, 0.9).ended("finished"),
        trial(1, 0.95).ended("stopped"),
        trial(2, 0.5).ended("failed", "lost"),
        Trial(3, POINT, "infeasible", "too large"),
        trial(4, 0.6, epochs=2),
        trial(5, 0.7),
        Trial(6, POINT, "running"),
    ]
    show(display, *trials, running={4: Progress("training", 3, 9, 5, 36), 5: None, 6: None})
    assert stream.getvalue().splitlines()[-1] == (
        "3 of 12 over (1 finished, 1 stopped, 1 failed), 3 running, 1 infeasible  best dice 0.9500 (trial 1)  "
        "1:35 spent, about 10:05 left, 0.50 GPU-hours  trial 4 epoch 3/9, trial 5 epoch 2, trial 6 waiting"
    )


def test_before_anything_is_known_the_line_of_state_is_short() -> None:
    stream = io.StringIO()
    SweepDisplay(5.0, stream).update([], planned=12, running={}, seconds=0.0, gpu_s=0.0, left_s=None)
    assert stream.getvalue() == "0 of 12 over  0:00 spent, 0.00 GPU-hours\n"


def test_the_line_of_state_comes_no_more_often_than_asked_for() -> None:
    stream = io.StringIO()
    display = SweepDisplay(stream=stream, every_s=60.0)
    for _ in range(20):
        show(display)
    assert stream.getvalue().count("\n") == 1


def test_a_terminal_shows_the_sweep_and_its_trials_below_the_lines_of_what_has_ended() -> None:
    stream = Terminal()
    display = SweepDisplay(60.0, stream)
    show(display, trial(0, 0.9).ended("finished"), trial(7, 0.8), running={7: Progress("training", 2, 9, 5, 36)})
    display.note("[red]not markup[/red]")
    display.close()
    shown = [line.strip() for line in stream.getvalue().splitlines()]
    in_order = [
        f"trial 0 finished  dice 0.9000 in 1 epoch  {IN_WORDS}",
        "trials  1 of 12 over (1 finished), 1 running",
        "time    1:35 spent, about 10:05 left, 0.50 GPU-hours",
    ]
    places = [next(place for place, line in enumerate(shown) if text in line) for text in in_order]
    assert places == sorted(places)
    assert any(line.startswith("7  epoch 2/9  0.8000  filters=16") for line in shown)
    assert any(line.startswith("best    dice 0.9000 (trial 0)  filters=16") for line in shown)
    assert "[red]not markup[/red]" in stream.getvalue()


def test_a_terminal_without_a_trial_has_its_table_too() -> None:
    stream = Terminal()
    display = SweepDisplay(60.0, stream)
    show(display)
    display.close()
    assert "no trial is scored yet" in stream.getvalue()


def test_a_narrow_terminal_cuts_the_point_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    stream = Terminal()
    display = SweepDisplay(60.0, stream)
    show(display, trial(7, 0.8), running={7: Progress("training", 2, 9, 5, 36)})
    display.close()
    row = next(line.strip() for line in stream.getvalue().splitlines() if "epoch 2/9" in line)
    assert row.startswith("7  epoch")
    assert len(row) == 50 - len("    "), "the number is on the right, below `trial`"
    assert "0.8000  filters=16" in row
    assert row.endswith("…")


def test_a_file_gets_no_colours_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    display = SweepDisplay(0.0, stream)
    show(display, trial(7, 0.8), running={7: None})
    display.note(f"[red]not markup[/red] :smile: {'a long line ' * 40}end")
    display.close()
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().splitlines()[-1] == f"[red]not markup[/red] :smile: {'a long line ' * 40}end"


def test_the_importance_of_axes_is_told_with_how_sure_it_is() -> None:
    space = {"model.filters": Axis(choice=(8, 16)), "train.seed": Axis(choice=(0, 1))}
    trials = [
        replace(
            trial(number, 0.9 - 0.2 * (number % 2) + 0.001 * number),
            point={"model.filters": 8 << number % 2, "train.seed": number // 2 % 2},
        ).ended("finished")
        for number in range(40)
    ]
    (line,) = importance_lines(trials, space)
    assert re.fullmatch(r"importance  filters \d+ % \(\d+ to \d+ %\), seed \d+ % \(\d+ to \d+ %\)", line)
    assert importance_lines(trials[:4], space) == ["importance  too few trials to tell"]
    assert importance_lines(trials[:3], space) == []


def test_the_leaderboard_has_a_column_for_each_axis() -> None:
    trials = [
        replace(trial(0, 0.81), point=POINT | {"model.filters": 8}, parameters=485_801).ended("stopped"),
        trial(1, 0.9, epochs=9).ended("finished"),
    ]
    assert final_table(trials, list(POINT)) == [
        "                           GPU    para-                     height,",
        "#  trial    dice  epochs  time   meters  status    filters    width  terms",
        "1      1  0.9000       9  4:30   1.94 M  finished       16   96,144  dice:1+bce:1",
        "2      0  0.8100       1  0:30  0.486 M  stopped         8   96,144  dice:1+bce:1",
        "",
        "best is trial 1: hard dice 0.9000 at original resolution, epoch 9  filters=16 height,width=96,144",
        "    terms=dice:1+bce:1",
    ]


def test_axes_for_which_there_is_no_room_come_in_a_table_below() -> None:
    wide = {f"augment.field_{letter}": 0.123456789 for letter in "abcdefghijklmnop"}
    lines = final_table([replace(trial(3, 0.9), point=wide).ended("finished")], list(wide))
    assert max(map(len, lines)) <= COLUMNS
    tables = [list(lines) for blank, lines in itertools.groupby(lines, key=lambda line: not line) if not blank][:-1]
    assert len(tables) > 1
    assert all(table[-1].startswith("1      3") for table in tables)
    assert [letter for table in tables for letter in table[1].split() if len(letter) == 1 and letter != "#"] == list(
        "abcdefghijklmnop"
    )


def test_two_axes_of_one_name_are_told_apart_and_one_that_does_not_apply_is_empty() -> None:
    point = {"model.kind": "unet", "optimizer.kind": "adam"}
    trials = [
        replace(trial(0, 0.9), point=point).ended("finished"),
        replace(trial(1, 0.8), point={"model.kind": "fcn"}).ended("finished"),
    ]
    above, heading, first, second, *_ = final_table(trials, list(point))
    assert above.split()[-2:] == ["model.", "optimizer."]
    assert heading.split()[-2:] == ["kind", "kind"]
    assert first.split()[-2:] == ["unet", "adam"]
    assert second.split()[-2:] == ["finished", "fcn"]


def test_after_the_best_come_those_that_failed_with_their_reasons() -> None:
    reason = "pictures car_3/1.jpg and car_9/7.jpg have a loss that is not finite in epoch 2, step 4; lower the rate"
    trials = [
        trial(0, 0.9).ended("finished"),
        replace(trial(1, 0.5), attempts=2).ended("failed", reason),
        Trial(2, POINT, "infeasible", "a step needs 21.3 GiB"),
    ]
    lines = final_table(trials, list(POINT))
    start = lines.index("") + 1
    assert lines[start:-3] == [
        f"trial 1 failed  dice 0.5000 in 1 epoch  2 attempts  {IN_WORDS.removesuffix(' terms=dice:1+bce:1')}",
        "    terms=dice:1+bce:1",
        "    pictures car_3/1.jpg and car_9/7.jpg have a loss that is not finite in epoch 2, step 4; lower",
        "    the rate",
        f"trial 2 infeasible  {IN_WORDS}",
        "    a step needs 21.3 GiB",
    ]


def test_a_long_leaderboard_says_where_the_rest_is() -> None:
    trials = [trial(number, 0.9 - 0.01 * number).ended("finished") for number in range(12)]
    trials += [Trial(number, POINT, "infeasible", "too large") for number in range(12, 27)]
    lines = final_table(trials, list(POINT), top=10)
    assert "2 more are in leaderboard.csv" in lines
    assert "5 more failed or infeasible trials are in leaderboard.csv" in lines
    assert sum("infeasible  " in line for line in lines) == 10


@pytest.mark.parametrize("trials", [[], [Trial(0, POINT, "failed", "its process was lost")]], ids=["none", "failed"])
def test_a_sweep_without_a_score_says_so(trials: list[Trial]) -> None:
    lines = final_table(trials, list(POINT))
    assert lines[0] == "no trial was scored"
    assert not any("best" in line for line in lines)

"""What the user sees of a run."""

import io
import shlex
from dataclasses import replace

import pytest

from segtrain.config import Recipe, override
from segtrain.launch.mailbox import Mailbox
from segtrain.launch.progress import RunDisplay, closing_lines
from segtrain.runs.goodput import Attempt, Goodput
from segtrain.runs.status import Progress, RunSummary

MOMENT = Progress("training", 2, 10, 45, 64, images_per_s=312.04, loss=0.12345, dice=0.93214, left_s=245.4)

HIDDEN_CURSOR = "\x1b[?25l"
"""What a bar begins with."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_names_epoch_step_speed_loss_dice_and_time_left() -> None:
    stream = io.StringIO()
    RunDisplay(5.0, stream).show(MOMENT)
    assert stream.getvalue() == "epoch 2/10  step 45/64  312.0 images/s  loss 0.1235  dice 0.9321  4:05 left\n"


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["lines", "terminal"])
def test_of_several_runs_the_one_that_is_shown_is_named(stream: io.StringIO) -> None:
    display = RunDisplay(60.0, stream)
    display.label = "fold 3 (2 of 5)"
    display.show(MOMENT)
    display.show(replace(MOMENT, phase="evaluating"))
    display.show(replace(MOMENT, phase="evaluating", dice=0.97))
    display.close()
    assert "fold 3 (2 of 5)  epoch 2/10  finished" in stream.getvalue()


def test_lines_come_no_more_often_than_asked_for() -> None:
    stream = io.StringIO()
    display = RunDisplay(60.0, stream)
    for step in range(1, 65):
        display.show(replace(MOMENT, step=step))
    assert stream.getvalue().count("\n") == 1


def test_each_finished_epoch_has_a_line_with_its_score() -> None:
    stream = io.StringIO()
    display = RunDisplay(60.0, stream)
    for epoch in (1, 2):
        display.show(replace(MOMENT, epoch=epoch))
        display.show(replace(MOMENT, epoch=epoch, phase="evaluating"))
        display.show(replace(MOMENT, epoch=epoch, phase="evaluating", dice=0.97))
    finished = [line for line in stream.getvalue().splitlines() if "finished" in line]
    assert finished == [f"epoch {epoch}/10  finished  loss 0.1235  validation dice 0.9700" for epoch in (1, 2)]


def test_an_epoch_without_evaluation_has_a_line_too() -> None:
    stream = io.StringIO()
    display = RunDisplay(60.0, stream)
    display.show(MOMENT)
    display.show(replace(MOMENT, epoch=3, step=1))
    assert "epoch 2/10  finished  loss 0.1235  training dice 0.9321" in stream.getvalue()


def test_a_run_that_starts_again_within_an_evaluation_does_not_count_it() -> None:
    stream = io.StringIO()
    display = RunDisplay(60.0, stream)
    display.show(replace(MOMENT, phase="evaluating"))
    display.show(Progress("starting"))
    display.show(replace(MOMENT, phase="evaluating"))
    assert "finished" not in stream.getvalue()


def test_a_terminal_shows_a_bar_and_keeps_the_lines_of_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    display = RunDisplay(5.0, stream)
    display.show(Progress("starting", epochs=10))
    display.show(MOMENT)
    display.note("worker 1 lost [twice]")
    display.show(replace(MOMENT, phase="evaluating"))
    display.show(replace(MOMENT, phase="evaluating", dice=0.97))
    display.close()
    shown = stream.getvalue()
    assert HIDDEN_CURSOR in shown
    assert "worker 1 lost [twice]" in shown
    assert "validation dice 0.9700" in shown


def test_no_terminal_means_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    display = RunDisplay(5.0, stream)
    display.show(MOMENT)
    display.close()
    assert stream.getvalue().count("\n") == 1
    assert HIDDEN_CURSOR not in stream.getvalue()


def test_the_mailbox_keeps_the_newest_moment_of_an_epoch_and_every_line() -> None:
    mailbox = Mailbox()
    for step in (1, 2, 3):
        mailbox.put(replace(MOMENT, step=step))
    mailbox.put("worker 1 lost")
    mailbox.put(replace(MOMENT, step=4))
    mailbox.put(replace(MOMENT, epoch=3, step=1))
    mailbox.put(replace(MOMENT, epoch=3, phase="evaluating"))
    taken = mailbox.take(0)
    assert mailbox.take(0) == taken, "an answer that did not arrive is given again"
    assert [told if isinstance(told, str) else (told.epoch, told.step) for _, told in taken] == [
        (2, 3),
        "worker 1 lost",
        (2, 4),
        (3, 1),
        (3, 45),
    ]
    assert mailbox.take(taken[-2][0]) == taken[-1:]
    assert mailbox.take(taken[-1][0]) == []


@pytest.mark.parametrize(("test_fold", "next_fold"), [(None, 0), (3, 3)])
def test_the_end_names_the_score_the_files_and_the_next_command(test_fold: int | None, next_fold: int) -> None:
    recipe = override(
        Recipe(), ["data.root=s3://b/set", f"data.test_fold={'null' if test_fold is None else test_fold}"]
    )
    summary = RunSummary("runs/a", 7, 0.9712, 0.96, 0.944, 7261.0, 312.0, stopped_early=True)
    text = "\n".join(
        closing_lines(
            summary,
            recipe,
            Goodput((Attempt(began_at=0.0, workers=2, seconds=200.0, steps_s=150.0, evaluation_s=10.0),)),
        )
    )
    assert "hard dice 0.9712 at original resolution on fold 0, epoch 7" in text
    assert "trained for 2:01:01 at 312.0 images/s (stopped early)" in text
    assert "goodput     80%: 160 s of 200 s in steps and scores; other 40 s" in text
    for path in ("runs/a/best/model.keras", "runs/a/panels", "runs/a/metrics.jsonl"):
        assert path in text
    assert text.endswith(f"python jobs/evaluate.py runs/a s3://b/set data.fold={next_fold}")


def test_the_next_command_can_be_pasted_into_a_shell() -> None:
    recipe = override(Recipe(), ["data.root=/data/my set; ls"])
    summary = RunSummary("/runs/it's $HOME", 7, 0.9, 0.9, 0.9, 1.0, 1.0, stopped_early=False)
    command = closing_lines(summary, recipe, Goodput(()))[-1].removeprefix("next").strip()
    assert shlex.split(command)[1:4] == ["jobs/evaluate.py", "/runs/it's $HOME", "/data/my set; ls"]

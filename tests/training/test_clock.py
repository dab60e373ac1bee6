"""The clock of a run, on a clock that the test moves."""

from collections.abc import Callable

import pytest

from segtrain.config import Recipe, override
from segtrain.runs.status import Driver, Progress
from segtrain.training import clock as clock_module
from segtrain.training.checkpoint import Cursor
from segtrain.training.clock import Watch

STEPS_PER_EPOCH, BATCH = 4, 10


class Clock:
    """Stands where it is until it is moved."""

    now_s = 1000.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(clock_module, "time", clock)
    return clock


@pytest.fixture
def told() -> list[Progress]:
    return []


@pytest.fixture
def cursor() -> Cursor:
    return Cursor()


@pytest.fixture
def start(clock: Clock, told: list[Progress], cursor: Cursor) -> Callable[..., Watch]:
    """A watch over a run of 3 epochs of 4 steps."""

    def build(*settings: str) -> Watch:
        recipe = override(Recipe(), ["train.epochs=3", f"train.global_batch_size={BATCH}", *settings])
        return Watch(recipe, cursor, STEPS_PER_EPOCH, Driver(told.append))

    return build


def step(watch: Watch, clock: Clock, cursor: Cursor, *, wait_s: float, compute_s: float) -> None:
    """What the loop does in one step."""
    with watch.waiting():
        clock.now_s += wait_s
    clock.now_s += compute_s
    cursor.step += 1
    cursor.step_in_epoch += 1
    cursor.add(loss=2.0 * BATCH, dice=0.75 * BATCH, samples=BATCH)
    watch.settled(BATCH)


def test_an_epochs_time_is_split_into_waiting_and_the_rest(
    start: Callable[..., Watch], clock: Clock, cursor: Cursor
) -> None:
    watch = start()
    watch.start_epoch()
    for _ in range(STEPS_PER_EPOCH):
        step(watch, clock, cursor, wait_s=0.25, compute_s=1.0)
    assert watch.finish_epoch() == {
        "loss": 2.0,
        "dice_training": 0.75,
        "samples": 40.0,
        "images_per_s": 8.0,
        "epoch_s": 5.0,
        "input_wait_s": 1.0,
        "compute_s": 4.0,
    }
    assert cursor.train_s == 5.0


def test_each_epoch_is_measured_for_itself(start: Callable[..., Watch], clock: Clock, cursor: Cursor) -> None:
    watch = start()
    for wait_s in (3.0, 1.0):
        watch.start_epoch()
        step(watch, clock, cursor, wait_s=wait_s, compute_s=1.0)
        measured = watch.finish_epoch()
        cursor.start_epoch(cursor.epoch + 1)
        clock.now_s += 50.0  # saving
    assert (measured["input_wait_s"], measured["epoch_s"]) == (1.0, 2.0)
    assert cursor.train_s == 6.0


def test_the_rate_shown_leaves_out_the_first_step_which_compiles(
    start: Callable[..., Watch], clock: Clock, cursor: Cursor, told: list[Progress]
) -> None:
    watch = start()
    watch.start_epoch()
    step(watch, clock, cursor, wait_s=0.0, compute_s=60.0)
    assert (told[-1].images_per_s, told[-1].left_s) == (0.0, 0.0)
    for _ in range(2):
        step(watch, clock, cursor, wait_s=0.0, compute_s=0.5)
    assert told[-1].images_per_s == BATCH / 0.5


def test_the_time_left_counts_steps_and_evaluations_to_come(
    start: Callable[..., Watch], clock: Clock, cursor: Cursor, told: list[Progress]
) -> None:
    watch = start()
    for epoch in range(2):
        watch.start_epoch()
        for _ in range(STEPS_PER_EPOCH):
            step(watch, clock, cursor, wait_s=0.0, compute_s=0.5)
        watch.finish_epoch()
        with watch.evaluating():
            clock.now_s += 7.0
        cursor.start_epoch(epoch + 1)
    watch.tell("training")
    assert told[-1].left_s == STEPS_PER_EPOCH * 0.5 + 7.0
    assert cursor.train_s == 2 * (STEPS_PER_EPOCH * 0.5 + 7.0)


def test_progress_says_where_the_run_is(
    start: Callable[..., Watch], clock: Clock, cursor: Cursor, told: list[Progress]
) -> None:
    watch = start()
    cursor.start_epoch(1)
    step(watch, clock, cursor, wait_s=0.0, compute_s=0.5)
    found = told[-1]
    assert (found.phase, found.epoch, found.epochs, found.step, found.steps_per_epoch) == ("training", 2, 3, 1, 4)
    assert (found.loss, found.dice) == (2.0, 0.75)
    watch.tell("evaluating", dice=0.9)
    assert (told[-1].phase, told[-1].loss, told[-1].dice) == ("evaluating", 2.0, 0.9)


def test_steps_are_told_four_times_a_second_at_most_and_phases_always(
    start: Callable[..., Watch], clock: Clock, cursor: Cursor, told: list[Progress]
) -> None:
    watch = start()
    for _ in range(100):
        step(watch, clock, cursor, wait_s=0.0, compute_s=0.0625)
    assert len(told) == 25
    with watch.evaluating():
        pass
    watch.tell("evaluating", dice=0.9)
    assert [progress.phase for progress in told[25:]] == ["evaluating", "evaluating"]


def test_a_checkpoint_follows_every_so_many_steps_of_the_run(start: Callable[..., Watch], cursor: Cursor) -> None:
    watch = start("checkpoint.every_steps=3")
    due = []
    for cursor.step in range(1, 10):
        if watch.checkpoint_follows():
            due.append(cursor.step)
    assert due == [3, 6, 9]


def test_a_checkpoint_is_due_so_many_minutes_after_the_last(
    start: Callable[..., Watch], clock: Clock, cursor: Cursor
) -> None:
    watch = start("checkpoint.every_minutes=2.0")
    due = []
    for minute in range(1, 9):
        clock.now_s += 60.0
        if minute == 5:
            watch.finish_epoch()  # after which the loop saves
        if watch.checkpoint_is_due():
            due.append(minute)
    assert due == [2, 4, 7]

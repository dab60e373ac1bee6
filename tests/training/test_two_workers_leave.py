"""Two workers of different speed, who know of each other what the sums of a step carry and nothing else."""

import random
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from segtrain.config import Recipe, override
from segtrain.pipeline.batches import StepBatch
from segtrain.runs.status import Driver, World
from segtrain.training import unread
from segtrain.training.checkpoint import Cursor
from segtrain.training.clock import Watch
from segtrain.training.loop import Leaving, train_epoch
from segtrain.training.step import Wishes
from segtrain.training.unread import Unread

TRIES = 200
MEET_TIMEOUT_S = 60.0


class Sums:
    """The all-reduce of two workers: each waits for the other at every step."""

    def __init__(self) -> None:
        self._meet = threading.Barrier(2, timeout=MEET_TIMEOUT_S)
        self._wishes: dict[int, tuple[int, Wishes]] = {}

    def of(self, rank: int, step: int, wishes: Wishes) -> list[float]:
        self._wishes[rank] = (step, wishes)
        self._meet.wait()
        (first, one), (second, other) = self._wishes[0], self._wishes[1]
        self._meet.wait()
        assert first == second, "the workers are at different steps"
        return [(float(a) + float(b)) / 2 for a, b in zip(one, other, strict=True)]


@dataclass
class Worker:
    """The parts of a run that the loop over an epoch touches; its arithmetic is the sums alone."""

    rank: int
    recipe: Recipe
    sums: Sums
    steps: int
    step_s: float
    leaves_at: int | None
    state: Any = field(default_factory=lambda: SimpleNamespace(cursor=Cursor()))
    unread: Unread[Any] = field(default_factory=Unread)
    record: None = None
    saved: list[tuple[int, float]] = field(default_factory=list)
    """Step of each checkpoint, and the pictures that the epoch's sums held then."""
    end: str = ""

    def __post_init__(self) -> None:
        self.world = World(workers=2, rank=self.rank)
        reader = SimpleNamespace(quarantined=[])
        self.training_data = SimpleNamespace(steps_per_epoch=self.steps, samples_per_epoch=self.steps, reader=reader)
        self.batches = iter(StepBatch(0, number, [str(number)], True, []) for number in range(self.steps))

    def learning_rate(self) -> float:
        return 0.1

    def step(self, replicas: list[Any], number: int, rate: float, wishes: Wishes, *, whole: bool) -> tf.Tensor:
        time.sleep(self.step_s * random.random())
        return tf.constant([0.5, 0.5, 1.0, *self.sums.of(self.rank, number, wishes), 1.0], tf.float64)

    def save(self) -> None:
        self.saved.append((self.state.cursor.step, self.state.cursor.samples))

    def train(self) -> None:
        leaves_at = self.leaves_at
        driver = Driver(wants_to_leave=lambda: leaves_at is not None and self.state.cursor.step >= leaves_at)
        watch = Watch(self.recipe, self.state.cursor, self.steps, driver)
        try:
            train_epoch(self, watch, driver)  # type: ignore[arg-type]
            self.end = "trained"
        except Leaving:
            self.end = "left"


@pytest.mark.parametrize("seed", range(4))
def test_workers_of_different_speed_leave_and_save_after_the_same_steps(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(unread, "MOST_SECONDS", 0.01)  # of steps of 0 to 3 ms, so that 1 to 16 of them are read at once
    at_once = set()
    for _ in range(TRIES // 4):
        sums, steps = Sums(), draw.randint(1, 40)
        minutes = draw.choice([10.0, 0.01 / 60, 0.003 / 60])
        recipe = override(Recipe(), ["train.global_batch_size=1", f"checkpoint.every_minutes={minutes}"])
        workers = [
            Worker(
                rank, recipe, sums, steps, draw.choice([0.0, 0.001, 0.003]), draw.choice([None, draw.randint(0, steps)])
            )
            for rank in range(2)
        ]
        threads = [threading.Thread(target=worker.train, daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(MEET_TIMEOUT_S)
        one, other = workers
        assert one.end == other.end != ""
        assert one.state.cursor.step == other.state.cursor.step
        assert one.state.cursor.samples == other.state.cursor.samples == one.state.cursor.step  # none is lost
        assert one.saved == other.saved
        assert all(step == samples for step, samples in one.saved)
        asked = [worker.leaves_at for worker in workers if worker.leaves_at is not None]
        if asked and min(asked) < steps:
            assert one.end == "left"
            assert one.state.cursor.step <= min(asked) + 2 + unread.MOST_STEPS
        at_once.add(one.unread._at_once)
    assert len(at_once) > 2  # else the tries were all alike

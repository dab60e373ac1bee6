"""The clock of a run: where its time goes, how fast it is, when a checkpoint is due, how long is left."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from segtrain.config import Recipe
from segtrain.runs.status import WHILE_SCORING, Account, Driver, Progress
from segtrain.training.checkpoint import Cursor

TELL_EVERY_S = 0.25


class Watch:
    """Measures one attempt of a run and tells its driver about it, four times a second at most."""

    def __init__(
        self,
        recipe: Recipe,
        cursor: Cursor,
        steps_per_epoch: int,
        driver: Driver,
        *,
        began_at: float | None = None,
        saved_step: Callable[[], int] = lambda: 0,
    ) -> None:
        """`began_at` (of `time.perf_counter`) is when the attempt began.

        `saved_step` returns the number of steps that a complete checkpoint holds.
        """
        self._recipe = recipe
        self._cursor = cursor
        self._steps_per_epoch = steps_per_epoch
        self._driver = driver
        self._began_at = time.perf_counter() if began_at is None else began_at
        self._saved_step = saved_step
        self._first_step = cursor.step
        self._told = 0.0
        self._saved_at = time.perf_counter()
        self._last_evaluation_s = 0.0
        self._starting_s: float | None = None
        self._steps_s = self._input_wait_s = self._checkpoint_s = self._evaluation_s = 0.0
        self.images_per_s = 0.0
        self.step_s = math.inf
        """Seconds a step between the last two times that results were read."""
        self.start_epoch()

    def start_epoch(self) -> None:
        """Start measuring what is left of an epoch."""
        self._started = self._ticked = self._read_at = time.perf_counter()
        self._first_settled: float | None = None
        self._samples = self._first_samples = self._waited_s = self._aside_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The loop waits for input inside the block."""
        started = time.perf_counter()
        yield
        waited = time.perf_counter() - started
        self._waited_s += waited
        self._aside_s += waited
        if self._starting_s is not None:
            self._input_wait_s += waited

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A checkpoint is begun inside the block, which waits for the one before it to be complete."""
        started = time.perf_counter()
        yield
        held_up = time.perf_counter() - started
        self._checkpoint_s += held_up
        self._aside_s += held_up
        self._driver.beat()

    def settled(self, samples: float) -> None:
        """One more step's result has been read."""
        now = time.perf_counter()
        passed, aside = now - self._ticked, self._aside_s
        self._cursor.train_s += passed
        self._ticked, self._aside_s = now, 0.0
        self._samples += samples
        if self._starting_s is None:
            self._starting_s = now - self._began_at
        else:
            self._steps_s += passed - aside
        # An attempt's first step traces and compiles; the rate shown leaves it out.
        if self._first_settled is None:
            self._first_settled, self._first_samples = now, samples
        elif now > self._first_settled:
            self.images_per_s = (self._samples - self._first_samples) / (now - self._first_settled)
        self.tell("training", quietly=True)

    def finish_epoch(self) -> dict[str, float]:
        """The epoch's measurements: mean loss and soft dice, images/s, seconds of waiting and of the rest."""
        cursor = self._cursor
        self._saved_at = time.perf_counter()  # a checkpoint follows
        seconds = self._saved_at - self._started
        if self._samples:
            self.images_per_s = self._samples / seconds
        return {
            "loss": cursor.loss_sum / max(cursor.samples, 1.0),
            "dice_training": cursor.dice_sum / max(cursor.samples, 1.0),
            "samples": cursor.samples,
            "images_per_s": self.images_per_s,
            "epoch_s": seconds,
            "input_wait_s": self._waited_s,
            "compute_s": seconds - self._waited_s,
        }

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The run is being scored inside the block."""
        self.tell("evaluating")
        started = time.perf_counter()
        if self._starting_s is None:  # it went on from a checkpoint at an epoch's end
            self._starting_s = started - self._began_at
        try:
            yield
        except Exception as error:
            error.add_note(WHILE_SCORING)
            raise
        self._last_evaluation_s = time.perf_counter() - started
        self._evaluation_s += self._last_evaluation_s
        self._cursor.train_s += self._last_evaluation_s
        self._driver.beat()

    def started(self) -> None:
        """A step has been started. The watchdog hears of it once a first one has ended, in which a GPU compiles."""
        if self._starting_s is not None:
            self._driver.beat()

    def read(self, steps: int) -> None:
        """The results of so many steps have been read at once."""
        self._driver.beat()
        now = time.perf_counter()
        self.step_s = (now - self._read_at) / steps
        self._read_at = now

    def checkpoint_follows(self) -> bool:
        """Whether `checkpoint.every_steps` calls for a checkpoint after the step at the cursor, on every worker."""
        every_steps = self._recipe.checkpoint.every_steps
        return every_steps is not None and self._cursor.step % every_steps == 0

    def checkpoint_is_due(self) -> bool:
        """Whether, by this worker's clock, `checkpoint.every_minutes` calls for a checkpoint within the epoch."""
        if time.perf_counter() - self._saved_at < self._recipe.checkpoint.every_minutes * 60.0:
            return False
        self._saved_at = time.perf_counter()
        return True

    def tell(self, phase: str, *, dice: float | None = None, quietly: bool = False) -> None:
        """Tell the driver where the run is; with `quietly`, only if it has not been told within `TELL_EVERY_S`."""
        now = time.perf_counter()
        if quietly and now - self._told < TELL_EVERY_S:
            return
        self._told = now
        cursor = self._cursor
        samples = max(cursor.samples, 1.0)
        self._driver.tell(
            Progress(
                phase=phase,
                epoch=cursor.epoch + 1,
                epochs=self._recipe.train.epochs,
                step=cursor.step_in_epoch,
                steps_per_epoch=self._steps_per_epoch,
                images_per_s=self.images_per_s,
                loss=cursor.loss_sum / samples,
                dice=cursor.dice_sum / samples if dice is None else dice,
                left_s=self._left_s(),
                account=self.account(),
            )
        )

    def saved(self, score: float | None) -> None:
        """Tell the driver that the epoch before the cursor is finished, and its score, if it was scored."""
        self._driver.tell(
            Progress(
                phase="saved",
                epoch=self._cursor.epoch,
                epochs=self._recipe.train.epochs,
                images_per_s=self.images_per_s,
                score=score,
                train_s=self._cursor.train_s,
                account=self.account(),
            )
        )

    def account(self) -> Account | None:
        """Where this attempt's time went; None before its first step has ended."""
        if self._starting_s is None:
            return None
        return Account(
            first_step=self._first_step,
            step=self._cursor.step,
            saved_step=self._saved_step(),
            starting_s=self._starting_s,
            steps_s=self._steps_s,
            input_wait_s=self._input_wait_s,
            checkpoint_s=self._checkpoint_s,
            evaluation_s=self._evaluation_s,
        )

    def _left_s(self) -> float:
        """Seconds to the last epoch's end at the present rate; 0 as long as the rate is not known."""
        if not self.images_per_s:
            return 0.0
        epochs = self._recipe.train.epochs - self._cursor.epoch
        steps = epochs * self._steps_per_epoch - self._cursor.step_in_epoch
        evaluations = epochs / self._recipe.evaluation.every_epochs
        return steps * self._recipe.train.global_batch_size / self.images_per_s + evaluations * self._last_evaluation_s

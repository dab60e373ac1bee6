"""What the user sees of a run: a progress bar on a terminal, plain lines elsewhere, and what it came to at the end."""

import shlex
import sys
import time
from typing import TYPE_CHECKING, Protocol, TextIO

from segtrain.config import Recipe
from segtrain.report.write import REPORT_NAME
from segtrain.runs.goodput import Goodput, goodput_sentence
from segtrain.runs.run_folder import RunFolder
from segtrain.runs.status import Progress, RunSummary
from segtrain.storage.files import join

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Display(Protocol):
    """Where a run is shown."""

    def show(self, progress: Progress) -> None:
        """Show where the run is."""

    def note(self, text: str) -> None:
        """Print a line that stays."""


class RunDisplay:
    """A bar over the whole run on a terminal, elsewhere a line every `every_s` seconds; a line for each ended epoch."""

    def __init__(self, every_s: float, stream: TextIO | None = None) -> None:
        """On stdout where no `stream` is given."""
        self.label = ""
        """Which of several runs it is; empty where there is one."""
        self._stream = stream or sys.stdout
        self._every_s = every_s
        self._printed_at = float("-inf")
        self._before: Progress | None = None
        self._bar = _started_bar(self._stream) if self._stream.isatty() else None

    def show(self, progress: Progress) -> None:
        """Show where the run is."""
        if progress.phase == "saved":
            return  # the line of the epoch is printed already
        line, now = _ended_epoch(self._before, progress), time.monotonic()
        self._before = progress
        if self._bar is not None:
            total = progress.epochs * progress.steps_per_epoch or None
            done = max(progress.epoch - 1, 0) * progress.steps_per_epoch + progress.step
            moment = self._labelled(_moment(progress))
            self._bar.update(self._bar.task_ids[0], description=moment, total=total, completed=done)
        elif line is None and (progress.phase == "starting" or now - self._printed_at >= self._every_s):
            line = _moment(progress)
        if line is not None:
            self._printed_at = now
            self.note(self._labelled(line))

    def note(self, text: str) -> None:
        """Print a line that stays."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the screen as it is."""
        if self._bar is not None:
            self._bar.stop()

    def _labelled(self, line: str) -> str:
        return f"{self.label}  {line}" if self.label else line


def _started_bar(stream: TextIO) -> "Bar":
    # rich takes a tenth of a second to import, which no job without a terminal needs to spend.
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
    bar = Bar(*columns, console=Console(file=stream, highlight=False), transient=True)
    bar.add_task("starting", total=None)
    bar.start()
    return bar


def _ended_epoch(before: Progress | None, now: Progress) -> str | None:
    """A line for the epoch that `now` shows to be finished, if it does.

    The loop tells of an evaluation when it starts and again, with the score, when it is done; an epoch without one is
    finished where the next begins.
    """
    if before is None:
        return None
    if before.phase == now.phase == "evaluating" and before.epoch == now.epoch:
        return f"{_epoch(now)}finished  loss {now.loss:.4f}  validation dice {now.dice:.4f}"
    if before.phase == now.phase == "training" and before.epoch < now.epoch:
        return f"{_epoch(before)}finished  loss {before.loss:.4f}  training dice {before.dice:.4f}"
    return None


def _moment(progress: Progress) -> str:
    """One line for where the run is."""
    if progress.phase == "starting":
        return "starting TensorFlow"
    if progress.phase == "evaluating":
        return f"{_epoch(progress)}evaluating"
    if progress.phase in ("done", "leaving"):
        return progress.phase
    left = f"  {clock(progress.left_s)} left" if progress.left_s else ""
    goodput = "" if progress.goodput is None else f"  goodput {progress.goodput:.0%}"
    return (
        f"{_epoch(progress)}step {progress.step}/{progress.steps_per_epoch}  {progress.images_per_s:.1f} images/s  "
        f"loss {progress.loss:.4f}  dice {progress.dice:.4f}{goodput}{left}"
    )


def _epoch(progress: Progress) -> str:
    return f"epoch {progress.epoch}/{progress.epochs}  " if progress.epoch else ""


def clock(seconds: float) -> str:
    """`1:05` for 65 seconds, `2:00:00` for two hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def closing_lines(summary: RunSummary, recipe: Recipe, goodput: Goodput) -> list[str]:
    """The score, where the time went, where everything is, and the command that comes next."""
    early = " (stopped early)" if summary.stopped_early else ""
    data, folder = recipe.data, RunFolder(summary.folder)
    fold = f" data.fold={data.fold if data.test_fold is None else data.test_fold}"
    return [
        f"hard dice {summary.dice_hard_original:.4f} at original resolution on fold {data.fold}, epoch {summary.epoch} "
        f"(IoU {summary.iou_hard_original:.4f}, soft dice {summary.dice_soft:.4f})",
        f"trained for {clock(summary.train_seconds)} at {summary.images_per_s:.1f} images/s{early}",
        *([f"goodput     {goodput_sentence(goodput)}"] if goodput.attempts else []),
        f"best model  {folder.best_model}",
        f"panels      {folder.panels}",
        f"metrics     {folder.metrics_log}",
        f"report      {join(summary.folder, REPORT_NAME)}",
        f"next        python jobs/evaluate.py {shlex.join([summary.folder, str(data.root)])}{fold}",
    ]

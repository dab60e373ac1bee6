"""What the user sees of a sweep: a live table on a terminal, plain lines elsewhere, and the leaderboard at the end."""

import re
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO, get_args

from segtrain.launch.progress import clock
from segtrain.runs.leaderboard import LEADERBOARD_NAME, ranked
from segtrain.runs.status import Progress
from segtrain.runs.trials import Status, Trial, point_label, short_name, short_value

COLUMNS = 100
"""Width of what is printed at the end."""
REFRESH_EVERY_S = 0.25
Column = tuple[str, list[str]]
"""Heading and values."""


class SweepDisplay(Protocol):
    """Where a sweep is shown."""

    def update(
        self,
        trials: Sequence[Trial],
        *,
        planned: int,
        running: Mapping[int, Progress | None],
        seconds: float,
        gpu_s: float,
        left_s: float | None,
    ) -> None:
        """Show all trials so far, infeasible ones too.

        `planned` trials are to be launched, infeasible ones not counted; `running` has the last word of each one under
        way. `seconds` and `gpu_s` are spent, `left_s` expected; None where that is not known.
        """

    def note(self, text: str) -> None:
        """Print a line that stays."""

    def close(self) -> None:
        """Leave the screen as it is."""


class TrialLines:
    """Notices what is new in the trials of a sweep."""

    def __init__(self) -> None:
        self._before: dict[int, Trial] = {}

    def of(self, trials: Sequence[Trial]) -> list[str]:
        """A line for each trial that has started, started again or ended since the last call."""
        lines = []
        for trial in trials:
            before = self._before.get(trial.number)
            self._before[trial.number] = trial
            if (
                before is None
                or before.status != trial.status
                or (trial.status == "running" and trial.attempts > max(before.attempts, 1))
            ):
                lines.append(_turn(trial))
        return lines


class PlainSweepDisplay:
    """Lines: one for each trial that starts or ends, and every `every_s` seconds one for the sweep."""

    def __init__(self, stream: TextIO, every_s: float) -> None:
        self._stream = stream
        self._every_s = every_s
        self._lines = TrialLines()
        self._printed_at = float("-inf")

    def update(
        self,
        trials: Sequence[Trial],
        *,
        planned: int,
        running: Mapping[int, Progress | None],
        seconds: float,
        gpu_s: float,
        left_s: float | None,
    ) -> None:
        for line in self._lines.of(trials):
            self.note(line)
        now = time.monotonic()
        if now - self._printed_at >= self._every_s:
            self._printed_at = now
            at = [f"trial {trial.number} {_epoch(trial, word)}" for trial, word in _under_way(trials, running)]
            best = f"best {_best(trials)}" if ranked(trials) else ""
            parts = [_counts(trials, planned), best, _spent(seconds, gpu_s, left_s), ", ".join(at)]
            self.note("  ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        self._stream.flush()


class TerminalSweepDisplay:
    """The sweep in a few lines and a table of the trials under way, with the lines of trials that ended above it."""

    def __init__(self, stream: TextIO) -> None:
        # rich takes a tenth of a second to import, which no job without a terminal needs to spend.
        from rich.console import Console
        from rich.live import Live

        console = Console(file=stream, highlight=False, markup=False)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._lines = TrialLines()
        self._drawn_at = float("-inf")
        self._live.start()

    def update(
        self,
        trials: Sequence[Trial],
        *,
        planned: int,
        running: Mapping[int, Progress | None],
        seconds: float,
        gpu_s: float,
        left_s: float | None,
    ) -> None:
        from rich.console import Group
        from rich.text import Text

        lines = self._lines.of(trials)
        for line in lines:
            self.note(line)
        now = time.monotonic()
        if lines or now - self._drawn_at >= REFRESH_EVERY_S:
            self._drawn_at = now
            best = next(iter(ranked(trials)), None)
            drawn = [
                "",
                f"trials  {_counts(trials, planned)}",
                f"best    {_best(trials)}  {point_label(best.point)}" if best else "best    no trial is scored yet",
                f"time    {_spent(seconds, gpu_s, left_s)}",
                "",
                *_running_table(_under_way(trials, running)),
            ]
            shown = [Text(line, no_wrap=True, overflow="ellipsis") for line in drawn]
            self._live.update(Group(*shown), refresh=True)

    def note(self, text: str) -> None:
        self._live.console.print(text, soft_wrap=True)

    def close(self) -> None:
        self._live.stop()


def open_sweep_display(every_s: float, stream: TextIO | None = None) -> SweepDisplay:
    """A table where `stream` (stdout where None is given) is a terminal, else lines, of the sweep every `every_s` s."""
    stream = stream or sys.stdout
    return TerminalSweepDisplay(stream) if stream.isatty() else PlainSweepDisplay(stream, every_s)


def final_table(trials: Sequence[Trial], axes: Sequence[str], top: int = 10) -> list[str]:
    """The sweep's end in lines of at most `COLUMNS` columns (words that are longer stay whole).

    The `top` best trials with a column for each of `axes`, in several tables where one would be too wide; then failed
    and infeasible trials with their reasons, at most `top` of them; and the best trial.
    """
    order = ranked(trials)
    lines = _leaders(order[:top], axes) if order else ["no trial was scored"]
    if len(order) > top:
        lines.append(f"{len(order) - top} more are in {LEADERBOARD_NAME}")
    broken = [trial for trial in trials if trial.status in ("failed", "infeasible")]
    if broken:
        lines.append("")
    for trial in broken[:top]:
        lines += _folded(f"{_outcome(trial)}  {point_label(trial.point)}") + _folded(f"    {trial.reason}")
    if len(broken) > top:
        lines.append(f"{len(broken) - top} more failed or infeasible trials are in {LEADERBOARD_NAME}")
    if order:
        best = order[0]
        score = f"hard dice {best.dice:.4f} at original resolution, epoch {best.best_epoch}"
        lines += ["", *_folded(f"best is trial {best.number}: {score}  {point_label(best.point)}")]
    return lines


def _turn(trial: Trial) -> str:
    """One line for what a trial has just begun or come to."""
    if trial.status == "running":
        again = f" again (attempt {trial.attempts})" if trial.attempts > 1 else ""
        return f"trial {trial.number} starts{again}  {point_label(trial.point)}"
    return "  ".join(part for part in (_outcome(trial), trial.reason, point_label(trial.point)) if part)


def _outcome(trial: Trial) -> str:
    """`trial 3 failed  dice 0.8647 in 2 epochs  2 attempts`."""
    epochs = f"{trial.epochs} epoch{'s' if trial.epochs > 1 else ''}"
    score = f"dice {trial.dice:.4f} in {epochs}" if trial.dice is not None else ""
    attempts = f"{trial.attempts} attempts" if trial.status == "failed" and trial.attempts > 1 else ""
    return "  ".join(part for part in (f"trial {trial.number} {trial.status}", score, attempts) if part)


def _counts(trials: Sequence[Trial], planned: int) -> str:
    """`4 of 12 over: 2 finished, 1 stopped, 1 failed; 2 running; 1 infeasible`."""
    count = {status: sum(trial.status == status for trial in trials) for status in get_args(Status)}
    over = [f"{count[status]} {status}" for status in ("finished", "stopped", "failed") if count[status]]
    text = f"{sum(count[status] for status in ('finished', 'stopped', 'failed'))} of {planned} over"
    text += f" ({', '.join(over)})" if over else ""
    return ", ".join([text, *(f"{count[status]} {status}" for status in ("running", "infeasible") if count[status])])


def _best(trials: Sequence[Trial]) -> str:
    best = next(iter(ranked(trials)), None)
    return f"dice {best.dice:.4f} (trial {best.number})" if best else ""


def _spent(seconds: float, gpu_s: float, left_s: float | None) -> str:
    left = "" if left_s is None else f", about {clock(left_s)} left"
    return f"{clock(seconds)} spent{left}, {gpu_s / 3600:.2f} GPU-hours"


def _under_way(trials: Sequence[Trial], running: Mapping[int, Progress | None]) -> list[tuple[Trial, Progress | None]]:
    return [(trial, running[trial.number]) for trial in trials if trial.number in running]


def _epoch(trial: Trial, now: Progress | None) -> str:
    """Which epoch a trial is in; without word from it, the one after the last that was scored."""
    if now is not None and now.epoch:
        return f"epoch {now.epoch}/{now.epochs}"
    return f"epoch {trial.epochs + 1}" if trial.attempts else "waiting"


def _running_table(under_way: Sequence[tuple[Trial, Progress | None]]) -> list[str]:
    trials = [trial for trial, _ in under_way]
    return _drawn(
        [
            ("trial", [str(trial.number) for trial in trials]),
            ("running", [_epoch(trial, now) for trial, now in under_way]),
            ("dice", [_score(trial) for trial in trials]),
            ("point", [point_label(trial.point) for trial in trials]),
        ]
    )


def _leaders(order: Sequence[Trial], axes: Sequence[str]) -> list[str]:
    """The best trials with a column an axis; axes for which there is no room go into one more table below."""
    key: list[Column] = [
        ("#", [str(rank) for rank in range(1, len(order) + 1)]),
        ("trial", [str(trial.number) for trial in order]),
    ]
    columns: list[Column] = [
        *key,
        ("dice", [_score(trial) for trial in order]),
        ("epochs", [str(trial.epochs) for trial in order]),
        ("GPU time", [clock(trial.gpu_s) for trial in order]),
        ("para- meters", [_in_millions(trial.parameters) for trial in order]),
        ("status", [trial.status for trial in order]),
    ]
    lines: list[str] = []
    short = [short_name(axis) for axis in axes]
    for axis, name in zip(axes, short, strict=True):
        values = [short_value(trial.point[axis]) if axis in trial.point else "" for trial in order]
        column = (name if short.count(name) == 1 else axis, values)
        if len(columns) > len(key) and max(map(len, _drawn([*columns, column]))) > COLUMNS:
            lines += [*_drawn(columns), ""]
            columns = key
        columns = [*columns, column]
    return lines + _drawn(columns)


def _drawn(columns: Sequence[Column]) -> list[str]:
    """Headings, broken after `_`, `,`, `.` and spaces, and the rows below them; numbers to the right."""
    headings = [re.sub(r"(?<=[_,.]) ?| ", "\n", name).split("\n") for name, _ in columns]
    height = max(map(len, headings))
    cells = []
    for heading, (_, values) in zip(headings, columns, strict=True):
        column = [*[""] * (height - len(heading)), *heading, *values]
        width = max(map(len, column))
        numbers = all(re.fullmatch(r"[-0-9.,:e]*( M)?", value) for value in values)
        cells.append([cell.rjust(width) if numbers else cell.ljust(width) for cell in column])
    return ["  ".join(row).rstrip() for row in zip(*cells, strict=True)]


def _in_millions(parameters: int) -> str:
    return f"{parameters / 1e6:.3g} M" if parameters else ""


def _score(trial: Trial) -> str:
    return "" if trial.dice is None else f"{trial.dice:.4f}"


def _folded(line: str) -> list[str]:
    return textwrap.wrap(line, COLUMNS, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)

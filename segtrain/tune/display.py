"""What the user sees of a sweep: a live table on a terminal, plain lines elsewhere, and the leaderboard at the end."""

import io
import re
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import TextIO, get_args

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from segtrain.config import Axis
from segtrain.launch.progress import clock
from segtrain.runs.leaderboard import LEADERBOARD_NAME, importance, ranked, tells_apart
from segtrain.runs.status import Progress
from segtrain.runs.trials import Status, Trial, point_label, short_name, short_value

COLUMNS = 100
"""Width of what is printed at the end."""
REFRESH_EVERY_S = 0.25
Column = tuple[str, list[str]]
"""Heading and values."""


class SweepDisplay:
    """A live table on a terminal; elsewhere a line every `every_s` seconds. Each start and end of a trial is a line."""

    def __init__(self, every_s: float, stream: TextIO | None = None) -> None:
        """On stdout where no `stream` is given."""
        stream = stream or sys.stdout
        # Said outright, because rich would let variables of the environment put colours into a file.
        self._console = Console(file=stream, force_terminal=stream.isatty(), highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if stream.isatty() else None
        self._every_s = REFRESH_EVERY_S if self._live else every_s
        self._shown_at = float("-inf")
        self._turns: dict[int, tuple[Status, int]] = {}  # of each trial, when it was last shown
        if self._live:
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
        """Show all trials so far, infeasible ones too.

        `planned` trials are to be launched, infeasible ones not counted; `running` has the last word of each one under
        way. `seconds` and `gpu_s` are spent, `left_s` expected; None where that is not known.
        """
        turns = [_turn(trial) for trial in trials if self._has_turned(trial)]
        for line in turns:
            self.note(line)
        now = time.monotonic()
        if now - self._shown_at < self._every_s and not (turns and self._live):
            return
        self._shown_at = now
        under_way = [(trial, running[trial.number]) for trial in trials if trial.number in running]
        counts = _counts(trials, planned)
        left = "" if left_s is None else f", about {clock(left_s)} left"
        spent = f"{clock(seconds)} spent{left}, {gpu_s / 3600:.2f} GPU-hours"
        best = next(iter(ranked(trials)), None)
        score = f"dice {best.dice:.4f} (trial {best.number})" if best else ""
        if self._live is None:
            at = ", ".join(f"trial {trial.number} {_epoch(trial, word)}" for trial, word in under_way)
            self.note("  ".join(filter(None, (counts, f"best {score}" if best else "", spent, at))))
            return
        head = [
            "",
            f"trials  {counts}",
            f"best    {score}  {point_label(best.point)}" if best else "best    no trial is scored yet",
            f"time    {spent}",
            "",
        ]
        lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in head]
        table = _table(
            [
                ("trial", [str(trial.number) for trial, _ in under_way]),
                ("running", [_epoch(trial, word) for trial, word in under_way]),
                ("dice", [_score(trial) for trial, _ in under_way]),
                ("point", [point_label(trial.point) for trial, _ in under_way]),
            ]
        )
        self._live.update(Group(*lines, table), refresh=True)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Leave the screen as it is."""
        if self._live:
            self._live.stop()

    def _has_turned(self, trial: Trial) -> bool:
        """Whether a trial has started, started again or ended since the last call."""
        turn = (trial.status, max(trial.attempts, 1) if trial.status == "running" else 0)
        before, self._turns[trial.number] = self._turns.get(trial.number), turn
        return before != turn


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


def importance_lines(trials: Sequence[Trial], space: Mapping[str, Axis]) -> list[str]:
    """How much each axis matters, in lines of at most `COLUMNS` columns; none where nothing is known."""
    found = importance(trials, space)
    if not found:
        return []
    told = ", ".join(f"{short_name(axis)} {part.label}" for axis, part in found.items())
    return _folded(f"importance  {told if tells_apart(found) else 'too few trials to tell'}")


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
    told = f" ({', '.join(over)})" if over else ""
    text = f"{sum(count[status] for status in ('finished', 'stopped', 'failed'))} of {planned} over{told}"
    return ", ".join([text, *(f"{count[status]} {status}" for status in ("running", "infeasible") if count[status])])


def _epoch(trial: Trial, now: Progress | None) -> str:
    """Which epoch a trial is in; without word from it, the one after the last that was scored."""
    if now is not None and now.epoch:
        return f"epoch {now.epoch}/{now.epochs}"
    return f"epoch {trial.epochs + 1}" if trial.attempts else "waiting"


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
        ("para- meters", [f"{trial.parameters / 1e6:.3g} M" if trial.parameters else "" for trial in order]),
        ("status", [trial.status for trial in order]),
    ]
    lines: list[str] = []
    short = [short_name(axis) for axis in axes]
    for axis, name in zip(axes, short, strict=True):
        column = (
            name if short.count(name) == 1 else axis,
            [short_value(trial.point[axis]) if axis in trial.point else "" for trial in order],
        )
        if len(columns) > len(key) and max(map(len, _drawn([*columns, column]))) > COLUMNS:
            lines += [*_drawn(columns), ""]
            columns = key
        columns = [*columns, column]
    return lines + _drawn(columns)


def _table(columns: Sequence[Column]) -> Table:
    """Headings, broken after `_`, `,`, `.` and spaces, and the rows below them; numbers to the right.

    Where there is no room for all, the last column is cut.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for place, (name, values) in enumerate(columns, start=1):
        table.add_column(
            Text(re.sub(r"(?<=[_,.]) ?| ", "\n", name)),
            justify="right" if all(re.fullmatch(r"[-0-9.,:e]*( M)?", value) for value in values) else "left",
            no_wrap=place < len(columns),
        )
    for row in zip(*(values for _, values in columns), strict=True):
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    return table


def _drawn(columns: Sequence[Column]) -> list[str]:
    """The table as lines, as wide as they come."""
    text = io.StringIO()
    Console(file=text, width=10_000, force_terminal=False).print(_table(columns))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def _score(trial: Trial) -> str:
    return "" if trial.dice is None else f"{trial.dice:.4f}"


def _folded(line: str) -> list[str]:
    return textwrap.wrap(line, COLUMNS, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)

"""How fast a reader is: the same code for every one of them, and rounds in which they take turns."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

REPOSITORY = Path(__file__).parents[2]
PROCESS_WITHIN_S = 600


class Batch(NamedTuple):
    """What a reader gives: so many pairs, and the arrays (pairs first) that hold them."""

    pairs: int
    arrays: Sequence[Any]


class Measured(NamedTuple):
    """One measurement of one reader."""

    pairs: int
    seconds: float
    server_s: float = 0.0
    """CPU time that the S3 server took meanwhile, which it took from the same cores."""

    @property
    def rate(self) -> float:
        """Pairs a second."""
        return self.pairs / self.seconds

    @property
    def rate_without_server(self) -> float:
        """Pairs a second if the server's CPU time had been spread over all cores and were not there."""
        return self.pairs / (self.seconds - self.server_s / (os.cpu_count() or 1))


class Spread(NamedTuple):
    """Several values of one quantity."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


def touch(arrays: Sequence[Any]) -> None:
    """Read the first and the last element of each array, which has to be complete for that; copies nothing."""
    for array in arrays:
        values = np.asarray(array)
        values.item(0), values.item(values.size - 1)


def consume(batches: Iterator[Batch], pairs: int) -> int:
    """Take batches until at least `pairs` have come; how many did."""
    taken = 0
    while taken < pairs:
        batch = next(batches)
        touch(batch.arrays)
        taken += batch.pairs
    return taken


def steady(batches: Iterator[Batch], warm_up: int, pairs: int) -> Measured:
    """Time `pairs` pairs after the first `warm_up` of an iterator, so that queues are neither empty nor prefilled."""
    consume(batches, warm_up)
    return from_start(lambda: batches, pairs)


def from_start(open_batches: Callable[[], Iterator[Batch]], pairs: int) -> Measured:
    """Time the first `pairs` pairs, the iterator's making and its wait for the first batch included."""
    started = time.perf_counter()
    taken = consume(open_batches(), pairs)
    return Measured(taken, time.perf_counter() - started)


def take_turns(
    readers: Mapping[str, Callable[[], Measured]], rounds: int, tell: Callable[[int, str], None]
) -> dict[str, list[Measured]]:
    """Every reader once a round, in the order given: the machine drifts, so only neighbours can be compared.

    `tell` hears of each reader (round, name) before its turn.
    """
    measured: dict[str, list[Measured]] = {name: [] for name in readers}
    for number in range(rounds):
        for name, measure in readers.items():
            tell(number, name)
            measured[name].append(measure())
    return measured


def run_module(module: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Any:
    """The last line that `python -m module arguments` prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=PROCESS_WITHIN_S,
    )
    if done.returncode:
        raise RuntimeError(f"{module} failed: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def cpu_s(process: int) -> float:
    """CPU seconds, user and system, that a process has taken so far, from Linux's /proc."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def process_memory(name: str) -> int:
    """Bytes of this process from Linux's /proc/self/status: `VmRSS` now, `VmHWM` at its highest."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024

"""A driver for tests of faults: the real training through the real launch, slow enough to be hit at a known step.

    python -m tests.support.fault_driver NOTES key=value ...

Each worker notes each step that it begins as a line of `NOTES/steps.jsonl`: time, step, rank, workers, pid, samples. It
waits for ever, once, where there is a file `NOTES/stick-<rank>`.
"""

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from segtrain import cli
from segtrain.config import Recipe, override
from segtrain.launch import train_run
from segtrain.runs.status import Driver, RunSummary, World

STEP_S = 0.25
"""A step takes so much longer, or as long as the file `NOTES/slow` says."""


def train_noting(recipe: Recipe, world: World, driver: Driver, *, notes: Path) -> RunSummary:
    """The real training; each step is noted, and takes a quarter of a second more."""
    from segtrain.pipeline.batches import unpacked
    from segtrain.training import step as step_module
    from segtrain.training.loop import train

    take_step = step_module.TrainStep.__call__

    def noted(self: object, batch: list[Any], step: int, *rest: Any, **known: Any) -> object:
        parts = [unpacked(part) for part in batch]
        keys = [int(k) for part in parts for k, w in zip(part.keys.numpy(), part.weights.numpy(), strict=True) if w]
        who = {"rank": world.rank, "workers": world.workers, "pid": os.getpid()}
        line = json.dumps({"time": time.time(), "step": step, **who, "keys": keys}) + "\n"
        descriptor = os.open(notes / "steps.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())  # one call, so that lines of two workers do not mix
        os.close(descriptor)
        stick_at_a_known_place(notes / f"stick-{world.rank}")
        slow = notes / "slow"
        time.sleep(float(slow.read_text()) if slow.exists() else STEP_S)
        return take_step(self, batch, step, *rest, **known)  # type: ignore[arg-type]

    step_module.TrainStep.__call__ = noted  # type: ignore[method-assign, assignment]
    return train(recipe, world, driver)


def stick_at_a_known_place(mark: Path) -> None:
    """Wait for ever where the file is there, which is taken away so that the next attempt goes through."""
    if mark.exists():
        mark.unlink()
        while True:
            time.sleep(1.0)


def main() -> int:
    notes, overrides = Path(sys.argv[1]), sys.argv[2:]
    work = functools.partial(train_noting, notes=notes)
    return cli.main(lambda: print_summary(train_run.launch(override(Recipe(), overrides), work)))


def print_summary(summary: RunSummary) -> None:
    print(f"finished with dice {summary.dice_hard_original!r} in epoch {summary.epoch}")


if __name__ == "__main__":
    sys.exit(main())
